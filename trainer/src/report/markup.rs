//! HTML that is XML too: every element is closed, and every text is escaped.

use std::fmt::{self, Display, Write as _};

/// Name and value of an attribute.
pub(super) type Attribute<'a> = (&'a str, &'a dyn Display);

/// A part of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Markup {
    text: String,
}

impl Markup {
    /// An element with what `inside` writes.
    pub(super) fn element(&mut self, name: &str, attributes: &[Attribute], inside: impl FnOnce(&mut Self)) {
        self.open(name, attributes, ">");
        inside(self);
        // Into a string, nothing can go wrong.
        let _ = write!(self.text, "</{name}>");
    }

    /// An element with nothing but a text.
    pub(super) fn phrase(&mut self, name: &str, attributes: &[Attribute], text: impl Display) {
        self.element(name, attributes, |inside| inside.text(text));
    }

    /// An element that holds nothing, of those that HTML does not close, or of SVG.
    pub(super) fn leaf(&mut self, name: &str, attributes: &[Attribute]) {
        self.open(name, attributes, "/>");
    }

    /// A text.
    pub(super) fn text(&mut self, text: impl Display) {
        let _ = write!(Escaped(&mut self.text), "{text}");
    }

    /// What was written elsewhere.
    pub(super) fn append(&mut self, other: &Self) {
        self.text += &other.text;
    }

    /// A style sheet, which HTML takes as it is; so it must not hold what XML does not.
    pub(super) fn style(&mut self, sheet: &str) {
        debug_assert!(!sheet.contains(['<', '&']), "a style sheet is not escaped");
        let _ = write!(self.text, "<style>{sheet}</style>");
    }

    /// All of it as a document.
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

/// Takes a text, and gives on what stands for it in XML.
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
                // File names may hold what XML may not. <https://www.w3.org/TR/xml/#charsets>
                '\u{FFFE}' | '\u{FFFF}' => self.0.push('\u{FFFD}'),
                _ if letter.is_control() => self.0.push('\u{FFFD}'),
                _ => self.0.push(letter),
            }
        }
        Ok(())
    }
}

/// A place on a drawing, to a tenth of its unit.
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
    fn texts_and_attributes_come_back_as_they_were() {
        let odd = "<script>alert('1 & 2')</script> \"quoted\" ]]> Größe\t→";
        let mut markup = Markup::default();
        markup.element("p", &[("title", &odd)], |inside| {
            inside.text(odd);
            inside.leaf("br", &[]);
        });
        assert!(!markup.text.contains("<script>"), "{}", markup.text);
        let document = roxmltree::Document::parse(&markup.text).unwrap();
        // As an attribute, a tab is a space.
        assert_eq!(document.root_element().attribute("title").unwrap(), odd.replace('\t', " "));
        assert_eq!(document.root_element().text().unwrap(), odd);
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        let mut markup = Markup::default();
        markup.phrase("p", &[], "a\0b\u{1b}[0m\u{FFFF}\r");
        let document = roxmltree::Document::parse(&markup.text).unwrap();
        assert_eq!(document.root_element().text().unwrap(), "a\u{FFFD}b\u{FFFD}[0m\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn places_are_short_and_finite() {
        let cases = [(12.04, "12"), (0.06, "0.1"), (-3.25, "-3.3"), (f64::NAN, "0"), (f64::INFINITY, "0")];
        for (place, text) in cases {
            assert_eq!(Place(place).to_string(), text);
        }
    }
}
