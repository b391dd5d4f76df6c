//! The frame of a chart: axes, grid, labels.

use super::axis::Axis;
use crate::report::markup::{Attribute, Markup, Place};

/// Space around the plot area for half a stroke.
const RIM: f64 = 2.0;

/// Tooltip of a range of the horizontal axis.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::report) struct Note {
    pub(in crate::report) from: f64,
    pub(in crate::report) to: f64,
    pub(in crate::report) text: String,
}

/// Size of a chart and its margins for labels, in SVG user units. The page scales it to the available width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) struct Size {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Size {
    /// Two charts per row.
    pub(in crate::report) const LARGE: Self =
        Self { width: 500.0, height: 260.0, left: 52.0, right: 24.0, top: 14.0, bottom: 42.0 };
    /// A chart next to a long table.
    pub(in crate::report) const TALL: Self = Self { height: 400.0, ..Self::LARGE };
    /// Many charts per row.
    pub(in crate::report) const SMALL: Self =
        Self { width: 190.0, height: 160.0, left: 28.0, right: 10.0, top: 8.0, bottom: 22.0 };
}

/// Maps the numbers of two axes to positions in a chart.
pub(super) struct Frame<'a> {
    pub(super) size: Size,
    pub(super) x: &'a Axis,
    pub(super) y: &'a Axis,
}

impl Frame<'_> {
    /// Position of a point in the chart; `None` if a coordinate is not finite.
    pub(super) fn place(&self, [x, y]: [f64; 2]) -> Option<[f64; 2]> {
        Some([self.across(x)?, self.up(y)?])
    }

    /// Draws the axes, and what `inside` draws, clipped to the plot area. `across` is the name of the horizontal axis.
    pub(super) fn draw(
        &self,
        markup: &mut Markup,
        title: &str,
        across: Option<&str>,
        inside: impl FnOnce(&mut Markup),
    ) {
        let Size { width, height, left, right, top, bottom } = self.size;
        let view = format!("0 0 {width} {height}");
        let attributes: [Attribute; 4] =
            [("xmlns", &"http://www.w3.org/2000/svg"), ("viewBox", &view), ("role", &"img"), ("aria-label", &title)];
        markup.element("svg", &attributes, |markup| {
            self.grid(markup);
            if let Some(name) = across {
                let attributes: [Attribute; 4] = [
                    ("class", &"name"),
                    ("x", &Place(width - right)),
                    ("y", &Place(height - 6.0)),
                    ("text-anchor", &"end"),
                ];
                markup.phrase("text", &attributes, name);
            }
            let (wide, high) = (width - left - right + 2.0 * RIM, height - top - bottom + 2.0 * RIM);
            let view = format!("{} {} {wide} {high}", left - RIM, top - RIM);
            let attributes: [Attribute; 5] = [
                ("x", &Place(left - RIM)),
                ("y", &Place(top - RIM)),
                ("width", &Place(wide)),
                ("height", &Place(high)),
                ("viewBox", &view),
            ];
            markup.element("svg", &attributes, inside);
        });
    }

    /// Draws a vertical marker line with a label.
    pub(super) fn mark(&self, markup: &mut Markup, x: f64, label: &str) {
        let Some(place) = self.across(x) else { return };
        let Size { width, height, top, bottom, .. } = self.size;
        markup.leaf(
            "path",
            &[("class", &"mark"), ("d", &format!("M{0} {top}V{1}", Place(place), Place(height - bottom)))],
        );
        let (side, anchor) = if place > width / 2.0 { (-5.0, "end") } else { (5.0, "start") };
        let attributes: [Attribute; 4] = [
            ("class", &"name"),
            ("x", &Place(place + side)),
            ("y", &Place(height - bottom - 7.0)),
            ("text-anchor", &anchor),
        ];
        markup.phrase("text", &attributes, label);
    }

    /// Draws the tooltip areas.
    pub(super) fn notes(&self, markup: &mut Markup, notes: &[Note]) {
        let Size { height, top, bottom, .. } = self.size;
        for Note { from, to, text } in notes {
            let (Some(left), Some(right)) = (self.across(*from), self.across(*to)) else { continue };
            let attributes: [Attribute; 5] = [
                ("class", &"note"),
                ("x", &Place(left)),
                ("y", &Place(top)),
                ("width", &Place(right - left)),
                ("height", &Place(height - top - bottom)),
            ];
            markup.element("rect", &attributes, |markup| markup.phrase("title", &[], text));
        }
    }

    fn grid(&self, markup: &mut Markup) {
        let Size { width, height, left, right, bottom, .. } = self.size;
        let floor = height - bottom;
        for (tick, y) in self.y.ticks.iter().filter_map(|tick| Some((*tick, self.up(*tick)?))) {
            markup.leaf("path", &[("class", &"grid"), ("d", &format!("M{left} {}H{}", Place(y), width - right))]);
            let attributes: [Attribute; 3] =
                [("x", &Place(left - 7.0)), ("y", &Place(y + 4.0)), ("text-anchor", &"end")];
            markup.phrase("text", &attributes, self.y.label(tick));
        }
        markup.leaf("path", &[("class", &"base"), ("d", &format!("M{left} {floor}H{}", width - right))]);
        for (tick, x) in self.x.ticks.iter().filter_map(|tick| Some((*tick, self.across(*tick)?))) {
            markup.leaf("path", &[("class", &"base"), ("d", &format!("M{} {floor}v4", Place(x)))]);
            let attributes: [Attribute; 3] =
                [("x", &Place(x)), ("y", &Place(floor + 17.0)), ("text-anchor", &"middle")];
            markup.phrase("text", &attributes, self.x.label(tick));
        }
    }

    fn across(&self, x: f64) -> Option<f64> {
        let Size { width, left, right, .. } = self.size;
        Some(left + self.x.place(x)? * (width - left - right))
    }

    fn up(&self, y: f64) -> Option<f64> {
        let Size { height, top, bottom, .. } = self.size;
        // Clamped: what is far outside is clipped anyway.
        Some(height - bottom - self.y.place(y)?.clamp(-9.0, 9.0) * (height - top - bottom))
    }
}
