//! SVG charts: lines or stacked columns over steps or epochs, with tooltips.

mod axis;
mod frame;

use super::markup::{Attribute, Markup, Place};
use frame::Frame;

pub(super) use axis::Axis;
pub(super) use frame::{Note, Size};

/// Maximum number of points drawn of a line; more would not be visible.
const MAX_POINTS: usize = 600;

/// Maximum number of points that get dots. A line with more has none.
const MAX_DOTS: usize = 40;

/// A line chart.
#[derive(Clone, Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// Name of the horizontal axis; `None` if there is no room for it.
    pub(super) across: Option<&'a str>,
    pub(super) size: Size,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// The lines, from back to front.
    pub(super) lines: Vec<Line<'a>>,
    /// A marked position on the horizontal axis, and its label.
    pub(super) mark: Option<(f64, &'a str)>,
    pub(super) notes: Vec<Note>,
}

/// A line. Non-finite points interrupt it.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) points: Vec<[f64; 2]>,
    /// Index of a color of the page: CSS class `c0` to `c4`.
    pub(super) color: usize,
    pub(super) stroke: Stroke,
}

/// Style of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    /// A solid line.
    Solid,
    /// A solid line, with dots at its points if they are few.
    Dotted,
    /// A thin, pale line in the background.
    Faint,
    /// A dashed line, to go with a solid one of the same color.
    Dashed,
}

/// A stacked column chart.
#[derive(Clone, Debug)]
pub(super) struct Columns<'a> {
    pub(super) title: &'a str,
    pub(super) across: &'a str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// Names of the segments, from the bottom up.
    pub(super) names: &'a [&'a str],
    /// Heights of the segments of each column. The range of the note with the same index is its position.
    pub(super) heights: Vec<Vec<f64>>,
    pub(super) notes: Vec<Note>,
}

impl Chart<'_> {
    /// Draws the chart as a figure.
    pub(super) fn draw(&self, markup: &mut Markup) {
        let frame = Frame { size: self.size, x: &self.x, y: &self.y };
        markup.element("figure", &[("class", &"chart")], |markup| {
            let names = self.lines.iter().map(|line| (line.name, line.color, line.stroke.class()));
            let remark = if self.y.is_logarithmic() { "log scale" } else { "" };
            caption(markup, self.title, remark, names);
            frame.draw(markup, self.title, self.across, |markup| {
                self.lines.iter().for_each(|line| line.draw(markup, &frame));
                if let Some((x, label)) = self.mark {
                    frame.mark(markup, x, label);
                }
                frame.notes(markup, &self.notes);
            });
        });
    }
}

impl Columns<'_> {
    /// Draws the chart as a figure.
    pub(super) fn draw(&self, markup: &mut Markup) {
        let frame = Frame { size: Size::LARGE, x: &self.x, y: &self.y };
        markup.element("figure", &[("class", &"chart")], |markup| {
            caption(markup, self.title, "", self.names.iter().enumerate().map(|(color, name)| (*name, color, "area")));
            frame.draw(markup, self.title, Some(self.across), |markup| {
                for (heights, note) in self.heights.iter().zip(&self.notes) {
                    let mut bottom = 0.0;
                    for (color, height) in heights.iter().enumerate().filter(|(_, height)| **height > 0.0) {
                        let top = bottom + height;
                        if let (Some([left, low]), Some([right, high])) =
                            (frame.place([note.from, bottom]), frame.place([note.to, top]))
                        {
                            let attributes: [Attribute; 5] = [
                                ("class", &format!("c{color}")),
                                ("x", &Place(left + 0.1 * (right - left))),
                                ("y", &Place(high)),
                                ("width", &Place(0.8 * (right - left))),
                                ("height", &Place(low - high)),
                            ];
                            markup.leaf("rect", &attributes);
                        }
                        bottom = top;
                    }
                }
                frame.notes(markup, &self.notes);
            });
        });
    }
}

impl Line<'_> {
    fn draw(&self, markup: &mut Markup, frame: &Frame) {
        let points = thinned(&self.points);
        let places: Vec<_> = points.iter().map(|point| frame.place(*point)).collect();
        let mut path = String::new();
        for piece in places.split(Option::is_none) {
            for (index, [x, y]) in piece.iter().flatten().enumerate() {
                path += &format!("{}{} {}", if index == 0 { "M" } else { "L" }, Place(*x), Place(*y));
            }
        }
        let class = format!("line {} c{}", self.stroke.class(), self.color);
        markup.leaf("path", &[("class", &class), ("d", &path)]);
        let alone = |index: usize| {
            let beside = [index.checked_sub(1), Some(index + 1)];
            beside.into_iter().flatten().all(|index| places.get(index).is_none_or(Option::is_none))
        };
        let few = places.len() <= MAX_DOTS && self.stroke == Stroke::Dotted;
        for (index, place) in places.iter().enumerate() {
            if let Some([x, y]) = place
                && (few || alone(index))
            {
                let class = format!("c{}", self.color);
                markup.leaf("circle", &[("class", &class), ("cx", &Place(*x)), ("cy", &Place(*y)), ("r", &"2.5")]);
            }
        }
    }
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Self::Solid | Self::Dotted => "solid",
            Self::Faint => "faint",
            Self::Dashed => "dashed",
        }
    }
}

/// The title, a remark, and a legend if there are several lines. Lines without a name are not in the legend.
fn caption<'a>(
    markup: &mut Markup,
    title: &str,
    remark: &str,
    names: impl ExactSizeIterator<Item = (&'a str, usize, &'a str)>,
) {
    markup.element("figcaption", &[], |markup| {
        markup.phrase("b", &[], title);
        if !remark.is_empty() {
            markup.phrase("span", &[("class", &"remark")], remark);
        }
        if names.len() > 1 {
            for (name, color, kind) in names.filter(|(name, ..)| !name.is_empty()) {
                markup.phrase("span", &[("class", &format!("key {kind} c{color}"))], name);
            }
        }
    });
}

/// Reduces the points of a long line: keeps the lowest and the highest of each part, so that no spike is lost.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let parts = points.chunks(points.len().div_ceil(MAX_POINTS / 2));
    let ends = parts.flat_map(|part| {
        let places = (0..part.len()).filter(|place| part[*place][1].is_finite());
        let height = |a: &usize, b: &usize| part[*a][1].total_cmp(&part[*b][1]);
        let (low, high) = (places.clone().min_by(height).unwrap_or(0), places.max_by(height).unwrap_or(0));
        let count = if low == high { 1 } else { 2 };
        [low.min(high), low.max(high)].into_iter().take(count).map(|place| part[place])
    });
    ends.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(points: Vec<[f64; 2]>) -> String {
        let line = Line { name: "<a>", points, color: 0, stroke: Stroke::Solid };
        let chart = Chart {
            title: "a & b",
            across: Some("step"),
            size: Size::LARGE,
            x: Axis::counting(1.0, 100.0, 5),
            y: Axis::from_zero(1.0, 4),
            lines: vec![line],
            mark: Some((50.0, "best")),
            notes: vec![Note { from: 0.0, to: 2.0, text: "1 < 2".to_owned() }],
        };
        let mut markup = Markup::default();
        chart.draw(&mut markup);
        markup.into_document()
    }

    /// The `d` attribute of the line's path.
    fn path(text: &str) -> String {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(text, options).unwrap();
        let line = |node: &roxmltree::Node| node.attribute("class").is_some_and(|class| class.starts_with("line "));
        document.descendants().find(line).unwrap().attribute("d").unwrap().to_owned()
    }

    #[test]
    fn non_finite_points_interrupt_a_line() {
        let text = drawn(vec![[1.0, 0.5], [2.0, 0.6], [3.0, f64::NAN], [4.0, 0.5], [5.0, 0.1]]);
        assert_eq!(path(&text).matches('M').count(), 2);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn a_single_point_is_a_dot_and_empty_lines_are_accepted() {
        assert_eq!(drawn(vec![[1.0, 0.5]]).matches("<circle").count(), 1);
        assert_eq!(path(&drawn(vec![])), "");
        assert_eq!(path(&drawn(vec![[f64::NAN; 2]; 3])), "");
    }

    #[test]
    fn a_long_line_keeps_its_spikes() {
        let mut points: Vec<_> = (0..100_000).map(|step| [f64::from(step), 0.5]).collect();
        points[54_321][1] = 9.0;
        points[77_777][1] = f64::NAN;
        let thinned = thinned(&points);
        assert!(thinned.len() <= MAX_POINTS, "{}", thinned.len());
        assert!(thinned.contains(&[54_321.0, 9.0]));
        assert!(thinned.is_sorted_by(|a, b| a[0] < b[0]));
    }
}
