//! Line charts as SVG. Colours are the page's, so that they follow its light and dark.

use std::fmt::Write as _;

/// A chart of some lines over one another.
#[derive(Debug)]
pub struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// What stands below.
    pub x: Axis<'a>,
    /// What stands at the left.
    pub y: Axis<'a>,
    /// Names and points, in the order of the page's colours.
    pub lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// One direction.
#[derive(Debug)]
pub struct Axis<'a> {
    /// With its unit.
    pub name: &'a str,
    /// How values become places.
    pub scale: Scale,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From nought.
    Linear,
    /// By powers of ten.
    Log,
    /// Shares, of which each nine takes as much room as the one before.
    Nines,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// A share of all but this is drawn at the edge.
const FINEST: f64 = 1e-6;

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(1e-4).log10(),
            Self::Nines => -(1.0 - value).max(FINEST).log10(),
        }
    }

    /// Where lines are drawn between two places, and what stands there.
    fn ticks(self, from: f64, to: f64) -> Vec<(f64, String)> {
        match self {
            Self::Linear => {
                let step = step(to - from);
                let first = (from / step).ceil() as i64;
                let last = (to / step).floor() as i64;
                (first..=last).map(|n| n as f64 * step).map(|at| (at, short(at))).collect()
            }
            Self::Log => {
                let (first, last) = (from.floor() as i32, to.ceil() as i32);
                let at = |n: i32| (f64::from(n), short(10_f64.powi(n)));
                (first..=last).map(at).filter(|(at, _)| (from..=to).contains(at)).collect()
            }
            Self::Nines => [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]
                .map(|share| (self.place(share), format!("{}", (share * 1e7_f64).round() / 1e5)))
                .into_iter()
                .filter(|(at, _)| (from..=to).contains(at))
                .collect(),
        }
    }
}

/// A round step of which about five fit.
fn step(span: f64) -> f64 {
    let rough = (span / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|times| rough <= times * power);
    times.unwrap_or(10.0) * power
}

/// A figure in few digits.
fn short(value: f64) -> String {
    match value.abs() {
        big @ 1e6.. => format!("{}M", trim(value / 1e6, if big < 1e7 { 2 } else { 1 })),
        1e4.. => format!("{}k", trim(value / 1e3, 1)),
        10.0.. => trim(value, 1),
        _ => trim(value, 4),
    }
}

fn trim(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

impl Chart<'_> {
    /// The chart as a file of its own, with its title and a legend.
    pub fn file(&self, style: &str) -> String {
        let drawing = self.drawing();
        if drawing.is_empty() {
            return String::new();
        }
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -44 {WIDTH} {}\" \
             width=\"{WIDTH}\"><style>{style}text{{font-family:sans-serif}}</style>\
             <rect class=\"paper\" y=\"-44\" width=\"{WIDTH}\" height=\"{}\"/>\
             <text class=\"title\" x=\"2\" y=\"-26\">{}</text>",
            HEIGHT + 44.0,
            HEIGHT + 44.0,
            escape(self.title)
        );
        let mut x = 2.0;
        for (number, (name, _)) in self.lines.iter().enumerate() {
            let _ = write!(
                svg,
                "<path class=\"line c{}\" d=\"M{x} -11h14\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"-7\">{}</text>",
                number % 8,
                x + 18.0,
                escape(name)
            );
            // Letters of this size are about this wide.
            x += 34.0 + 6.2 * name.chars().count() as f64;
        }
        svg + &drawing + "</svg>\n"
    }

    /// The chart as a part of a page; nothing when there is nothing to show.
    pub fn svg(&self) -> String {
        let drawing = self.drawing();
        if drawing.is_empty() {
            return drawing;
        }
        let title = escape(self.title);
        format!(
            "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\" aria-label=\"{title}\">{drawing}</svg></figure>"
        )
    }

    fn drawing(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        if points().next().is_none() {
            return String::new();
        }
        let (x0, x1) = bounds(self.x.scale, points().map(|(x, _)| *x));
        let values = points().map(|(_, y)| *y);
        let (y0, y1) =
            bounds(self.y.scale, values.filter(|value| self.y.scale != Scale::Log || 0.0 < *value));
        let across = |at: f64| LEFT + (at - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let down = |at: f64| HEIGHT - BOTTOM - (at - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let mut svg = String::new();
        let (edge, base) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (at, label) in self.y.scale.ticks(y0, y1) {
            let y = down(at);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{edge}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        for (at, label) in self.x.scale.ticks(x0, x1) {
            let x = across(at);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{base}\"/>\
                 <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>",
                base + 16.0
            );
        }
        let _ = write!(
            svg,
            "<text class=\"name\" text-anchor=\"end\" x=\"{edge}\" y=\"{:.1}\">{}</text>\
             <text class=\"name\" x=\"2\" y=\"{:.1}\">{}</text>",
            HEIGHT - 6.0,
            escape(self.x.name),
            HEIGHT - 6.0,
            escape(self.y.name)
        );
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let place = |(x, y): &(f64, f64)| {
                (across(self.x.scale.place(*x)), down(self.y.scale.place(*y)))
            };
            let path: Vec<String> =
                points.iter().map(place).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let _ = write!(
                svg,
                "<path class=\"line c{}\" d=\"M{}\"><title>{}</title></path>",
                number % 8,
                path.join("L"),
                escape(name)
            );
        }
        svg
    }
}

/// The places that hold all values.
fn bounds(scale: Scale, values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for place in values.filter(|value| value.is_finite()).map(|value| scale.place(value)) {
        (low, high) = (low.min(place), high.max(place));
    }
    if scale != Scale::Log {
        low = low.min(0.0);
        high *= if scale == Scale::Linear { 1.05 } else { 1.0 };
    } else {
        // Up to the next power of ten the eye has nothing to hold on to.
        (low, high) = (low.floor(), high.ceil());
    }
    // Nothing at all has no bounds either.
    let low = if low.is_finite() { low } else { 0.0 };
    if high - low < 1e-9 { (low, low + 1.0) } else { (low, high) }
}

/// Text that stands for itself in a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_figures() {
        let labels = |scale: Scale, from, to| -> Vec<String> {
            scale.ticks(from, to).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(Scale::Linear, 0.0, 105_000.0), ["0", "25k", "50k", "75k", "100k"]);
        assert_eq!(labels(Scale::Log, -1.0, 2.0), ["0.1", "1", "10", "100"]);
        assert_eq!(labels(Scale::Nines, 0.0, 3.1), ["0", "50", "90", "99", "99.9"]);
    }

    #[test]
    fn a_chart_holds_all_its_lines() {
        let axis = |name| Axis { name, scale: Scale::Linear };
        let lines = vec![("a", vec![(0.0, 0.0), (1.0, 2.0)]), ("<b>", vec![(0.5, 1.0)])];
        let svg = Chart { title: "t", x: axis("s"), y: axis("ms"), lines }.svg();
        assert!(svg.contains("c0") && svg.contains("c1") && svg.contains("&lt;b&gt;"));
        let none = Chart { title: "t", x: axis("s"), y: axis("ms"), lines: vec![("a", vec![])] };
        assert_eq!((none.svg(), none.file("")), (String::new(), String::new()));
    }
}
