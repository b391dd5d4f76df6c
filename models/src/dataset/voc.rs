//! Pascal VOC: a folder with one XML file per image. <http://host.robots.ox.ac.uk/pascal/VOC/>
//!
//! The numbers are the edges of the box: its width is `xmax - xmin`, and nothing is shifted, as in the other formats. VOC's
//! own images count from 1 and include the last pixel, but most tools write edges counted from 0, and a file does not say
//! which it has; read this way, boxes of the former are off by up to a pixel.

use std::cell::LazyCell;
use std::path::Path;

use roxmltree::{Document, Node};

use super::error::DataError;
use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::report::Problem;
use super::{folder, text};
use crate::rectangle::Rectangle;

/// Parses the XML files in a folder and below, without checking them.
pub(super) fn parse(folder: &Path) -> Result<Parsed, DataError> {
    let files = folder::below(folder, &["xml"])?;
    let mut parsed = Parsed::default();
    for Parsed { images, problems, .. } in text::in_parallel(&files, |file| parse_file(folder, file))? {
        parsed.images.extend(images);
        parsed.problems.extend(problems);
    }
    Ok(parsed)
}

fn parse_file(folder: &Path, file: &str) -> Result<Parsed, DataError> {
    let text = text::read_text(&folder.join(file))?;
    let mut parsed = Parsed::default();
    // Without a document type there are no entities, which could make a short file long.
    match Document::parse(&text) {
        Ok(document) => parsed.add(file, &document),
        Err(error) => parsed.problems.push(Problem::in_line(file, error.pos().row.into(), error.to_string())),
    }
    Ok(parsed)
}

impl Parsed {
    /// Adds the image of a document.
    fn add(&mut self, file: &str, document: &Document) {
        // A search from the start for every bad object would take quadratic time.
        let line_ends =
            LazyCell::new(|| document.input_text().match_indices('\n').map(|(end, _)| end).collect::<Vec<_>>());
        let line = |at: usize| 1 + line_ends.partition_point(|end| *end < at) as u64;
        let at = |Fault { at, reason }| Problem::in_line(file, line(at), reason);
        let root = document.root_element();
        let Some((file_name, size)) = self.keep(image(root).map_err(at)) else { return };
        let objects = root.children().filter(|node| node.has_tag_name("object"));
        let boxes = objects.filter_map(|node| self.keep(object(node).map_err(at))).collect();
        let stem = Some(folder::stem(file));
        self.images.push(ParsedImage { file_name, stem, size, boxes, ..ParsedImage::default() });
    }
}

/// File name and size of the image.
fn image(root: Node) -> Result<(String, Option<(u32, u32)>), Fault> {
    if root.tag_name().name() != "annotation" {
        return Err(Fault::new(root, format!("root is <{}>, expected <annotation>", root.tag_name().name())));
    }
    let size = child(root, "size").and_then(|size| side(size, "width").zip(side(size, "height")));
    Ok((child(root, "filename").map(content).unwrap_or_default().to_owned(), size))
}

fn object(object: Node) -> Result<ParsedBox, Fault> {
    let bounds = child(object, "bndbox").ok_or_else(|| Fault::missing(object, "bndbox"))?;
    let edge = |name| {
        let edge = child(bounds, name).ok_or_else(|| Fault::missing(bounds, name))?;
        text::number(content(edge)).map_err(|reason| Fault::new(edge, reason))
    };
    let edges = [edge("xmin")?, edge("ymin")?, edge("xmax")?, edge("ymax")?];
    let name = child(object, "name").map(content).filter(|name| !name.is_empty());
    let class = ClassKey::Name(name.ok_or_else(|| Fault::missing(object, "name"))?.to_owned());
    let difficult = child(object, "difficult").map_or(Ok(false), is_true)?;
    Ok(ParsedBox { difficult, ..ParsedBox::new(class, Geometry::Pixels(Rectangle::between(edges))) })
}

/// Whether an element is 1 or true; empty ones are not.
fn is_true(node: Node) -> Result<bool, Fault> {
    let found = content(node);
    match found.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "" | "0" | "false" => Ok(false),
        _ => Err(Fault::new(node, format!("<{}> is `{found}`, expected 0 or 1", node.tag_name().name()))),
    }
}

/// What is wrong with an element.
struct Fault {
    /// Where it begins in the text.
    at: usize,
    reason: String,
}

impl Fault {
    fn new(node: Node, reason: String) -> Self {
        Self { at: node.range().start, reason }
    }

    fn missing(node: Node, name: &str) -> Self {
        Self::new(node, format!("<{}> has no <{name}>", node.tag_name().name()))
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn content<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

/// A side of the image; none where it is missing or zero, as some tools leave it.
fn side(size: Node, name: &str) -> Option<u32> {
    text::whole_number(content(child(size, name)?)).ok().filter(|pixels| *pixels > 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, Source};

    const OBJECT: &str = "<object><name>dog</name><difficult>1</difficult><bndbox><ymin>2</ymin><xmin>1</xmin>\
        <xmax>11</xmax><ymax>22.5</ymax></bndbox><part><bndbox/></part></object>";

    /// A file of annotations with these elements.
    fn annotation(elements: &str) -> String {
        format!("\u{feff}<?xml version=\"1.0\"?>\r\n<annotation>\n{elements}\n</annotation>\n")
    }

    fn read_one(elements: &str) -> Result<Vec<String>, String> {
        read_text(&annotation(elements))
    }

    fn read_text(text: &str) -> Result<Vec<String>, String> {
        let folder = folder(&[("Annotations/a.xml", text), ("JPEGImages/a.jpg", ""), ("JPEGImages/b.png", "")]);
        let source = Source::new(folder.path().join("Annotations"));
        match read(&source, OnProblem::Refuse) {
            Ok((dataset, _)) => Ok(lines(&dataset)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_image_has_the_declared_name_or_that_of_the_annotation_file() {
        let cases = [
            ("<filename>b.png</filename>", "b.png"),
            ("<filename> b </filename>", "b.png"),
            ("<filename>b.jpg</filename>", "b.png"),
            ("<filename>gone.jpg</filename>", "a.jpg"),
            ("<filename/>", "a.jpg"),
            ("", "a.jpg"),
        ];
        for (elements, expected) in cases {
            assert_eq!(read_one(elements), Ok(vec![format!("{expected} 200x100:")]), "{elements}");
        }
    }

    #[test]
    fn sizes_that_are_missing_or_invalid_are_measured() {
        let cases = [
            ("<size><width>300</width><height>400.0</height><depth>3</depth></size>", "300x400"),
            ("<size><width>0</width><height>0</height></size>", "200x100"),
            ("<size><width>300</width></size>", "200x100"),
            ("<size/>", "200x100"),
            ("<size><width>wide</width><height>1</height></size>", "200x100"),
            ("<size><width>-1</width><height>1</height></size>", "200x100"),
            ("", "200x100"),
        ];
        for (elements, expected) in cases {
            assert_eq!(read_one(elements), Ok(vec![format!("a.jpg {expected}:")]), "{elements}");
        }
    }

    #[test]
    fn difficult_objects_are_read_with_their_mark() {
        for (content, difficult) in [("1", true), ("True", true), (" 0 ", false), ("", false)] {
            let text = annotation(&OBJECT.replace("<difficult>1<", &format!("<difficult>{content}<")));
            let folder = folder(&[("a.xml", text.as_str()), ("a.jpg", "")]);
            let (dataset, _) = read(&Source::new(folder.path()), OnProblem::Refuse).unwrap();
            assert_eq!(dataset.annotations()[0].difficult, difficult, "{content}");
        }
        assert_eq!(read_one(OBJECT), Ok(vec!["a.jpg 200x100: dog 1 2 10 20.5".to_owned()]));
        let escaped = OBJECT.replace("dog", "<![CDATA[d&g]]>");
        assert_eq!(read_one(&escaped).unwrap(), ["a.jpg 200x100: d&g 1 2 10 20.5"]);
    }

    #[test]
    fn the_list_selects_images_and_not_classes() {
        let [a, b, c] = ["dog", "cat", "cow"].map(|name| annotation(&OBJECT.replace("dog", name)));
        let files = [("x/c.xml", c.as_str()), ("x/a.xml", &a), ("x/b.xml", &b), ("list.txt", "c\na\nd\n")];
        let folder = folder(&[&files[..], &[("x/a.jpg", ""), ("x/b.jpg", ""), ("x/c.jpg", "")]].concat());
        let mut source = Source::new(folder.path().join("x"));
        source.list = Some(folder.path().join("list.txt"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 list entry without a matching image: d"), "{error}");
        std::fs::write(folder.path().join("list.txt"), "c.jpg\na.jpg").unwrap();
        assert_eq!(read_valid(&source), ["a.jpg 200x100: dog 1 2 10 20.5", "c.jpg 200x100: cow 1 2 10 20.5"]);
        let (dataset, _) = read(&source, OnProblem::Refuse).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["cat", "cow", "dog"]);
        assert_eq!(dataset.folder, folder.path().join("x"));
    }

    #[test]
    fn bad_entries_are_named_with_their_line() {
        let cases = [
            (
                OBJECT.replace("<name>dog</name>", ""),
                "1 entry that cannot be read: a.xml line 3 (<object> has no <name>)",
            ),
            (OBJECT.replace("dog", " "), "line 3 (<object> has no <name>)"),
            (OBJECT.replace("<xmin>1</xmin>", "\n"), "line 3 (<bndbox> has no <xmin>)"),
            (OBJECT.replace("<xmax>11<", "\n<xmax>1o<"), "line 4 (`1o` is not a number)"),
            (OBJECT.replace("bndbox>", "robndbox>"), "line 3 (<object> has no <bndbox>)"),
            (OBJECT.replace("<difficult>1<", "<difficult>2<"), "line 3 (<difficult> is `2`, expected 0 or 1)"),
            ("<object>".to_owned(), "line 4 (expected 'object' tag"),
        ];
        for (elements, message) in cases {
            let error = read_one(&elements).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn hostile_files_are_bad_entries() {
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]><annotation>&b;</annotation>";
        let deep = "<annotation>".repeat(1_000_000);
        for (text, message) in [
            (bomb, "a.xml line 1 ("),
            (&deep, "a.xml line 1 ("),
            ("", "a.xml line 1 ("),
            ("<boxes/>", "line 1 (root is <boxes>, expected <annotation>)"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let nested = format!("{}{}", "<annotation>".repeat(100_000), "</annotation>".repeat(100_000));
        assert_eq!(read_text(&nested), Ok(vec!["a.jpg 200x100:".to_owned()]));
    }

    #[test]
    fn folders_below_are_read_and_images_found_in_theirs() {
        let text = annotation(&format!("<filename>p0.jpg</filename>{OBJECT}"));
        let folder = folder(&[("Annotations/set1/cam/p0.xml", &text), ("JPEGImages/set1/cam/p0.jpg", "")]);
        for annotations in ["Annotations", ""] {
            let source = Source::new(folder.path().join(annotations));
            assert_eq!(read_valid(&source), ["set1/cam/p0.jpg 200x100: dog 1 2 10 20.5"]);
        }
    }

    #[test]
    fn a_bad_object_does_not_spoil_the_others() {
        let text = annotation(&format!("{}{OBJECT}", OBJECT.replace("dog", "")));
        let folder = folder(&[("x/a.xml", text.as_str()), ("x/b.xml", "<html/>"), ("x/a.jpg", "")]);
        let (dataset, report) = read(&Source::new(folder.path().join("x")), OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["a.jpg 200x100: dog 1 2 10 20.5"]);
        assert_eq!(report.problems.len(), 2);
    }
}
