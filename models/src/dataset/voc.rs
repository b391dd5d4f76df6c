//! Pascal VOC: a folder with one XML file per image. <http://host.robots.ox.ac.uk/pascal/VOC/>
//!
//! The numbers are taken as the edges of the box: it is `xmax - xmin` wide, and nothing is shifted, as in the other formats.
//! VOC's own images count from 1 and include the last pixel, but most tools write edges counted from 0, and a file does
//! not say which it has; read this way, boxes of the former are off by up to a pixel. Objects that are marked `difficult`
//! are boxes like any other. Folders below are not looked into.

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::draft::{ClassKey, Draft};
use super::images::{Images, split_extension};
use super::labeled::{LabeledBox, LabeledImage, measure};
use super::source::Part;
use super::{DataError, IMAGE_EXTENSIONS, Rectangle, classes, files};

/// The files of annotations in a folder.
pub(super) fn annotation_files(folder: &Path) -> Result<Vec<String>, DataError> {
    files::inside(folder, &["xml"])
}

/// The folder of images that goes with a folder of annotations.
pub(super) fn images(annotations: &Path) -> Option<PathBuf> {
    let beside = match annotations.file_name() {
        Some(_) => annotations.with_file_name("JPEGImages"),
        // `.` or `..`, whose names only the system knows.
        None => annotations.canonicalize().ok()?.with_file_name("JPEGImages"),
    };
    beside.is_dir().then_some(beside)
}

/// The images and boxes of a folder. The list names files of annotations. Without class file, the classes are those of
/// all files, also of those that are not in the list, so that all parts of a data set have the same.
pub(super) fn draft(part: &Part) -> Result<Draft, DataError> {
    let files = annotation_files(part.annotations)?;
    let read = files::in_parallel(&files, |file| Annotated::read(part.annotations, file))?;
    let names = read.iter().flat_map(|annotated| &annotated.objects).map(|(name, _)| name.as_str());
    let classes = part.classes.clone().unwrap_or_else(|| classes::named(names));
    let (chosen, problems) = part.select(read, |annotated| &annotated.stem)?;

    let found = Images::new(&part.folder, files::inside(&part.folder, &IMAGE_EXTENSIONS)?);
    let images = chosen.into_iter().map(|annotated| annotated.labeled(&found, &part.folder));
    let mut images = images.collect::<Result<Vec<_>, _>>()?;
    measure(&mut images, &part.folder, part.size_of);
    Ok(Draft::number(images, classes, problems))
}

/// What a file says.
struct Annotated {
    /// Its own name, without extension.
    stem: String,
    /// That of the image.
    file_name: Option<String>,
    size: Option<(u32, u32)>,
    /// Classes and boxes.
    objects: Vec<(String, Rectangle)>,
}

impl Annotated {
    fn read(folder: &Path, file: &str) -> Result<Self, DataError> {
        let path = folder.join(file);
        let text = files::read_text(&path)?;
        // Without a document type there are no entities, which could make a short file long.
        let document =
            Document::parse(&text).map_err(|error| DataError::line(&path, error.pos().row, error.to_string()))?;
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned();
        let parsed = Self::parse(stem, document.root_element());
        parsed.map_err(|Fault { at, reason }| DataError::line(&path, document.text_pos_at(at).row, reason))
    }

    fn parse(stem: String, root: Node) -> Result<Self, Fault> {
        if root.tag_name().name() != "annotation" {
            return Err(Fault::new(root, format!("<{}>, expected <annotation> of VOC", root.tag_name().name())));
        }
        let size = match child(root, "size") {
            Some(size) => side(size, "width")?.zip(side(size, "height")?),
            None => None,
        };
        let objects = root.children().filter(|node| node.has_tag_name("object")).map(|object| {
            let bounds = child(object, "bndbox").ok_or_else(|| Fault::missing(object, "bndbox"))?;
            let edge = |name| {
                let edge = child(bounds, name).ok_or_else(|| Fault::missing(bounds, name))?;
                files::number(content(edge)).map_err(|reason| Fault::new(edge, reason))
            };
            let rectangle = Rectangle::between([edge("xmin")?, edge("ymin")?, edge("xmax")?, edge("ymax")?]);
            let name = child(object, "name").map(content).filter(|name| !name.is_empty());
            Ok((name.ok_or_else(|| Fault::missing(object, "name"))?.to_owned(), rectangle))
        });
        let file_name = child(root, "filename").map(content).filter(|name| !name.is_empty());
        Ok(Self { stem, file_name: file_name.map(str::to_owned), size, objects: objects.collect::<Result<_, _>>()? })
    }

    /// With its image: the file that it names, or what that becomes with an extension; if there is none, the image of
    /// its own name, since names inside go out of date when files are renamed.
    fn labeled(self, images: &Images, folder: &Path) -> Result<LabeledImage, DataError> {
        let Self { stem, file_name, size, objects } = self;
        let file_name = match file_name {
            Some(name) if folder.join(&name).is_file() => name,
            name => {
                let named = name.as_deref().map(|name| images.find(split_extension(name).0)).transpose()?.flatten();
                let found = if named.is_some() { named } else { images.find(&stem)? };
                found.map(str::to_owned).or(name).unwrap_or(stem)
            }
        };
        let boxes = objects
            .into_iter()
            .map(|(name, rectangle)| LabeledBox { class: ClassKey::Name(name), rectangle })
            .collect();
        Ok(LabeledImage { size, boxes, ..LabeledImage::new(file_name) })
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
        Self::new(node, format!("<{}> without <{name}>", node.tag_name().name()))
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn content<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

/// A side of the image; none where it is missing or zero, as some tools leave it.
fn side(size: Node, name: &str) -> Result<Option<u32>, Fault> {
    let Some(side) = child(size, name) else { return Ok(None) };
    let pixels = files::whole_number(content(side)).map_err(|reason| Fault::new(side, reason))?;
    Ok(Some(pixels).filter(|pixels| *pixels > 0))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_sound};
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
    fn the_image_is_the_one_that_is_named_or_has_the_same_name() {
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
    fn sizes_are_measured_where_they_are_not_said() {
        let cases = [
            ("<size><width>300</width><height>400.0</height><depth>3</depth></size>", "300x400"),
            ("<size><width>0</width><height>0</height></size>", "200x100"),
            ("<size><width>300</width></size>", "200x100"),
            ("<size/>", "200x100"),
            ("", "200x100"),
        ];
        for (elements, expected) in cases {
            assert_eq!(read_one(elements), Ok(vec![format!("a.jpg {expected}:")]), "{elements}");
        }
    }

    #[test]
    fn objects_are_boxes_also_difficult_ones() {
        assert_eq!(read_one(OBJECT), Ok(vec!["a.jpg 200x100: dog 1 2 10 20.5".to_owned()]));
        let escaped = OBJECT.replace("dog", "<![CDATA[d&g]]>");
        assert_eq!(read_one(&escaped).unwrap(), ["a.jpg 200x100: d&g 1 2 10 20.5"]);
    }

    #[test]
    fn the_list_restricts_the_images_and_not_the_classes() {
        let [a, b, c] = ["dog", "cat", "cow"].map(|name| annotation(&OBJECT.replace("dog", name)));
        let files = [("x/c.xml", c.as_str()), ("x/a.xml", &a), ("x/b.xml", &b), ("list.txt", "c\na\nd\n")];
        let folder = folder(&[&files[..], &[("x/a.jpg", ""), ("x/b.jpg", ""), ("x/c.jpg", "")]].concat());
        let mut source = Source::new(folder.path().join("x"));
        source.list = Some(folder.path().join("list.txt"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 name in the list without an image: d"), "{error}");
        std::fs::write(folder.path().join("list.txt"), "c.jpg\na.jpg").unwrap();
        assert_eq!(read_sound(&source), ["a.jpg 200x100: dog 1 2 10 20.5", "c.jpg 200x100: cow 1 2 10 20.5"]);
        let (dataset, _) = read(&source, OnProblem::Refuse).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["cat", "cow", "dog"]);
        assert_eq!(dataset.folder, folder.path().join("x"));
    }

    #[test]
    fn what_is_missing_or_garbled_is_named_with_its_line() {
        let cases = [
            (OBJECT.replace("<name>dog</name>", ""), "a.xml` line 3: <object> without <name>"),
            (OBJECT.replace("dog", " "), "line 3: <object> without <name>"),
            (OBJECT.replace("<xmin>1</xmin>", "\n"), "line 3: <bndbox> without <xmin>"),
            (OBJECT.replace("<xmax>11<", "\n<xmax>1o<"), "line 4: `1o` is no number"),
            (OBJECT.replace("bndbox>", "robndbox>"), "line 3: <object> without <bndbox>"),
            ("\n<size><width>wide</width><height>1</height></size>".to_owned(), "line 4: `wide` is no number"),
            ("<size><width>-1</width><height>1</height></size>".to_owned(), "`-1` is no whole number from 0"),
            ("<object>".to_owned(), "line 4: expected 'object' tag"),
        ];
        for (elements, message) in cases {
            let error = read_one(&elements).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn hostile_files_are_refused() {
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]><annotation>&b;</annotation>";
        let deep = "<annotation>".repeat(1_000_000);
        for (text, message) in [
            (bomb, "a.xml` line 1: "),
            (&deep, "a.xml` line 1: "),
            ("", "a.xml` line 1: "),
            ("<boxes/>", "line 1: <boxes>, expected <annotation> of VOC"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let nested = format!("{}{}", "<annotation>".repeat(100_000), "</annotation>".repeat(100_000));
        assert_eq!(read_text(&nested), Ok(vec!["a.jpg 200x100:".to_owned()]));
    }
}
