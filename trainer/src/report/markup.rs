//! Writes HTML that is also well-formed XML: every element is closed, and every text is escaped.

use std::fmt::{self, Display, Write as _};

/// Name and value of an attribute.
pub(super) type Attribute<'a> = (&'a str, &'a dyn Display);

/// A fragment of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Markup {
    text: String,
}

impl Markup {
    /// Writes an element with the content that `inside` writes.
    pub(super) fn element(&mut self, name: &str, attributes: &[Attribute], inside: impl FnOnce(&mut Self)) {
        self.open(name, attributes, ">");
        inside(self);
        // Writing into a string cannot fail.
        let _ = write!(self.text, "</{name}>");
    }

    /// Writes an element that contains only text.
    pub(super) fn phrase(&mut self, name: &str, attributes: &[Attribute], text: impl Display) {
        self.element(name, attributes, |inside| inside.text(text));
    }

    /// Writes an empty element: an HTML void element or an SVG element.
    pub(super) fn leaf(&mut self, name: &str, attributes: &[Attribute]) {
        self.open(name, attributes, "/>");
    }

    /// Writes escaped text.
    pub(super) fn text(&mut self, text: impl Display) {
        let _ = write!(Escaped(&mut self.text), "{text}");
    }

    /// Appends another fragment.
    pub(super) fn append(&mut self, other: &Self) {
        self.text += &other.text;
    }

    /// Writes a style sheet. HTML does not unescape it, so it must not contain characters that XML requires to be escaped.
    pub(super) fn style(&mut self, sheet: &str) {
        debug_assert!(!sheet.contains(['<', '&']), "a style sheet is not escaped");
        let _ = write!(self.text, "<style>{sheet}</style>");
    }

    /// The fragment as an HTML document.
    pub(super) fn into_document(self) -> String {
        format!("<!DOCTYPE html>\n{}\n", self.text)
    }

    fn open(&mut self, name: &str, attributes: &[Attribute], end: &str) {
        let _ = write!(self.text, "<{name}");
        for (attribute, value) in attributes {
            let _ = write!(self.text, " {attribute}=\"");
            self.text(value);
            self.text.push('"');
        }
        self.text += end;
    }
}

/// Escapes text for XML.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\t' | '\n' => self.0.push(letter),
                // File names can contain characters that XML does not allow. <https://www.w3.org/TR/xml/#charsets>
                '\u{FFFE}' | '\u{FFFF}' => self.0.push('\u{FFFD}'),
                _ if letter.is_control() => self.0.push('\u{FFFD}'),
                _ => self.0.push(letter),
            }
        }
        Ok(())
    }
}

/// A coordinate, displayed with one decimal. Non-finite ones are displayed as 0.
pub(super) struct Place(pub(super) f64);

impl Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let tenths = (10.0 * self.0).round();
        if tenths.is_finite() { write!(formatter, "{}", tenths / 10.0) } else { formatter.write_str("0") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_attributes_are_escaped() {
        let odd = "<script>alert('1 & 2')</script> \"quoted\" ]]> Größe\t→";
        let mut markup = Markup::default();
        markup.element("p", &[("title", &odd)], |inside| {
            inside.text(odd);
            inside.leaf("br", &[]);
        });
        assert!(!markup.text.contains("<script>"), "{}", markup.text);
        let document = roxmltree::Document::parse(&markup.text).unwrap();
        // XML normalizes a tab in an attribute to a space.
        assert_eq!(document.root_element().attribute("title").unwrap(), odd.replace('\t', " "));
        assert_eq!(document.root_element().text().unwrap(), odd);
    }

    #[test]
    fn characters_not_allowed_in_xml_are_replaced() {
        let mut markup = Markup::default();
        markup.phrase("p", &[], "a\0b\u{1b}[0m\u{FFFF}\r");
        let document = roxmltree::Document::parse(&markup.text).unwrap();
        assert_eq!(document.root_element().text().unwrap(), "a\u{FFFD}b\u{FFFD}[0m\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        let cases = [(12.04, "12"), (0.06, "0.1"), (-3.25, "-3.3"), (f64::NAN, "0"), (f64::INFINITY, "0")];
        for (place, text) in cases {
            assert_eq!(Place(place).to_string(), text);
        }
    }
}
