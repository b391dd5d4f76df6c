//! The HTML page of a report.

use std::fmt::Display;

use super::markup::Markup;

/// A page with a header and sections.
pub(super) struct Page {
    title: String,
    head: Markup,
    sections: Vec<Section>,
}

struct Section {
    id: &'static str,
    title: &'static str,
    content: Markup,
}

impl Page {
    pub(super) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), head: Markup::default(), sections: Vec::new() }
    }

    /// Adds facts to the header: name, value and remark.
    pub(super) fn facts(&mut self, facts: &[(&str, String, String)]) {
        self.head.element("ul", &[("class", &"facts")], |markup| {
            for (name, value, remark) in facts {
                markup.element("li", &[], |markup| {
                    markup.phrase("span", &[("class", &"fact")], name);
                    markup.phrase("strong", &[], value);
                    markup.phrase("span", &[("class", &"remark")], remark);
                });
            }
        });
    }

    /// Adds a section with the content that `draw` writes.
    pub(super) fn section(&mut self, id: &'static str, title: &'static str, draw: impl FnOnce(&mut Markup)) {
        let mut content = Markup::default();
        draw(&mut content);
        self.sections.push(Section { id, title, content });
    }

    /// The page as an HTML document.
    pub(super) fn into_document(self, subtitle: impl Display) -> String {
        let mut markup = Markup::default();
        let attributes = [("lang", &"en" as &dyn Display), ("xmlns", &"http://www.w3.org/1999/xhtml")];
        markup.element("html", &attributes, |markup| {
            markup.element("head", &[], |markup| self.write_head(markup));
            markup.element("body", &[], |markup| {
                markup.element("header", &[], |markup| {
                    markup.phrase("h1", &[], &self.title);
                    markup.phrase("p", &[("class", &"remark")], subtitle);
                    markup.append(&self.head);
                    markup.element("nav", &[], |markup| {
                        for Section { id, title, .. } in &self.sections {
                            markup.phrase("a", &[("href", &format!("#{id}"))], title);
                            markup.text(" ");
                        }
                    });
                });
                markup.element("main", &[], |markup| {
                    for Section { id, title, content } in &self.sections {
                        markup.element("section", &[("id", id)], |markup| {
                            markup.phrase("h2", &[], title);
                            markup.append(content);
                        });
                    }
                });
            });
        });
        markup.into_document()
    }

    fn write_head(&self, markup: &mut Markup) {
        markup.leaf("meta", &[("charset", &"utf-8")]);
        markup.leaf("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
        markup.leaf("meta", &[("name", &"color-scheme"), ("content", &"light dark")]);
        markup.phrase("title", &[], format!("{}: training report", self.title));
        markup.style(include_str!("page.css"));
    }
}
