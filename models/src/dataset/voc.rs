//! Pascal VOC: a folder with one XML file per image. <http://host.robots.ox.ac.uk/pascal/VOC/>
//!
//! Coordinates are treated as box edges, as in the other formats: the width is `xmax - xmin`, and nothing is shifted.
//! VOC's own annotations are 1-based and include the last pixel, but most tools write 0-based edges, and a file does
//! not declare which it contains; VOC's own boxes are therefore off by up to a pixel. `difficult` objects are ordinary
//! boxes. Subfolders are not searched.

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::draft::{ClassKey, Draft};
use super::images::{ImageIndex, split_extension};
use super::labeled::{LabeledBox, LabeledImage, fill_sizes};
use super::source::ResolvedSource;
use super::{DataError, IMAGE_EXTENSIONS, Rectangle, classes, files};

/// The annotation files of a folder.
pub(super) fn annotation_files(folder: &Path) -> Result<Vec<String>, DataError> {
    files::list_files(folder, &["xml"])
}

/// The default image folder: `JPEGImages` next to the annotation folder.
pub(super) fn image_folder(annotations: &Path) -> Option<PathBuf> {
    let folder = match annotations.file_name() {
        Some(_) => annotations.with_file_name("JPEGImages"),
        // `.` and `..` have no file name.
        None => annotations.canonicalize().ok()?.with_file_name("JPEGImages"),
    };
    folder.is_dir().then_some(folder)
}

/// Reads images and boxes of a folder. The image list selects annotation files. Without a class file, the classes are
/// those of all files, listed or not, so that all splits of a data set have the same classes.
pub(super) fn draft(source: &ResolvedSource) -> Result<Draft, DataError> {
    let files = annotation_files(source.annotations)?;
    let parsed = files::read_in_parallel(&files, |file| AnnotationFile::read(source.annotations, file))?;
    let names = parsed.iter().flat_map(|file| &file.objects).map(|(name, _)| name.as_str());
    let classes = source.classes.clone().unwrap_or_else(|| classes::from_names(names));
    let (selected, problems) = source.select(parsed, |file| &file.stem)?;

    let index = ImageIndex::new(&source.folder, files::list_files(&source.folder, &IMAGE_EXTENSIONS)?);
    let images = selected.into_iter().map(|file| file.labeled(&index, &source.folder));
    let mut images = images.collect::<Result<Vec<_>, _>>()?;
    fill_sizes(&mut images, &source.folder, source.size_of);
    Ok(Draft::from_labeled(images, classes, problems))
}

/// The contents of one annotation file.
struct AnnotationFile {
    /// Name of the annotation file, without extension.
    stem: String,
    /// Name of the image file.
    file_name: Option<String>,
    size: Option<(u32, u32)>,
    /// Class names and boxes.
    objects: Vec<(String, Rectangle)>,
}

impl AnnotationFile {
    fn read(folder: &Path, file: &str) -> Result<Self, DataError> {
        let path = folder.join(file);
        let text = files::read_text(&path)?;
        // Document types are refused: their entities could expand a short file into a huge text.
        let document =
            Document::parse(&text).map_err(|error| DataError::line(&path, error.pos().row, error.to_string()))?;
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned();
        let parsed = Self::parse(stem, document.root_element());
        parsed.map_err(|XmlError { offset, reason }| DataError::line(&path, document.text_pos_at(offset).row, reason))
    }

    fn parse(stem: String, root: Node) -> Result<Self, XmlError> {
        if root.tag_name().name() != "annotation" {
            return Err(XmlError::new(root, format!("root is <{}>, expected <annotation>", root.tag_name().name())));
        }
        let size = match child(root, "size") {
            Some(size) => side(size, "width")?.zip(side(size, "height")?),
            None => None,
        };
        let objects = root.children().filter(|node| node.has_tag_name("object")).map(|object| {
            let bounds = child(object, "bndbox").ok_or_else(|| XmlError::missing(object, "bndbox"))?;
            let edge = |name| {
                let edge = child(bounds, name).ok_or_else(|| XmlError::missing(bounds, name))?;
                files::parse_number(content(edge)).map_err(|reason| XmlError::new(edge, reason))
            };
            let rectangle = Rectangle::between([edge("xmin")?, edge("ymin")?, edge("xmax")?, edge("ymax")?]);
            let name = child(object, "name").map(content).filter(|name| !name.is_empty());
            Ok((name.ok_or_else(|| XmlError::missing(object, "name"))?.to_owned(), rectangle))
        });
        let file_name = child(root, "filename").map(content).filter(|name| !name.is_empty());
        Ok(Self { stem, file_name: file_name.map(str::to_owned), size, objects: objects.collect::<Result<_, _>>()? })
    }

    /// Adds the image: the file named in the XML, with any image extension. If it does not exist, the image with the
    /// name of the annotation file, since the names inside are outdated once files are renamed.
    fn labeled(self, images: &ImageIndex, folder: &Path) -> Result<LabeledImage, DataError> {
        let Self { stem, file_name, size, objects } = self;
        let file_name = match file_name {
            Some(name) if folder.join(&name).is_file() => name,
            name => {
                let by_name = name.as_deref().map(|name| images.find(split_extension(name).0)).transpose()?.flatten();
                let found = if by_name.is_some() { by_name } else { images.find(&stem)? };
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

/// An error in an XML element.
struct XmlError {
    /// Byte offset of the element in the text.
    offset: usize,
    reason: String,
}

impl XmlError {
    fn new(node: Node, reason: String) -> Self {
        Self { offset: node.range().start, reason }
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

/// Width or height of the image; none if it is missing, or zero, which some tools write.
fn side(size: Node, name: &str) -> Result<Option<u32>, XmlError> {
    let Some(side) = child(size, name) else { return Ok(None) };
    let pixels = files::parse_integer(content(side)).map_err(|reason| XmlError::new(side, reason))?;
    Ok(Some(pixels).filter(|pixels| *pixels > 0))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, Source};

    const OBJECT: &str = "<object><name>dog</name><difficult>1</difficult><bndbox><ymin>2</ymin><xmin>1</xmin>\
        <xmax>11</xmax><ymax>22.5</ymax></bndbox><part><bndbox/></part></object>";

    /// An annotation file with these elements.
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
    fn image_is_found_by_file_name_or_else_by_the_name_of_the_xml_file() {
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
    fn missing_sizes_are_read_from_the_images() {
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
    fn difficult_objects_are_ordinary_boxes() {
        assert_eq!(read_one(OBJECT), Ok(vec!["a.jpg 200x100: dog 1 2 10 20.5".to_owned()]));
        let escaped = OBJECT.replace("dog", "<![CDATA[d&g]]>");
        assert_eq!(read_one(&escaped).unwrap(), ["a.jpg 200x100: d&g 1 2 10 20.5"]);
    }

    #[test]
    fn list_restricts_the_images_but_not_the_classes() {
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
    fn missing_and_invalid_elements_are_reported_with_their_line() {
        let cases = [
            (OBJECT.replace("<name>dog</name>", ""), "a.xml` line 3: <object> has no <name>"),
            (OBJECT.replace("dog", " "), "line 3: <object> has no <name>"),
            (OBJECT.replace("<xmin>1</xmin>", "\n"), "line 3: <bndbox> has no <xmin>"),
            (OBJECT.replace("<xmax>11<", "\n<xmax>1o<"), "line 4: `1o` is not a number"),
            (OBJECT.replace("bndbox>", "robndbox>"), "line 3: <object> has no <bndbox>"),
            ("\n<size><width>wide</width><height>1</height></size>".to_owned(), "line 4: `wide` is not a number"),
            ("<size><width>-1</width><height>1</height></size>".to_owned(), "`-1` is not a non-negative integer"),
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
            ("<boxes/>", "line 1: root is <boxes>, expected <annotation>"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let nested = format!("{}{}", "<annotation>".repeat(100_000), "</annotation>".repeat(100_000));
        assert_eq!(read_text(&nested), Ok(vec!["a.jpg 200x100:".to_owned()]));
    }
}
