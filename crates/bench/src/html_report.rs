//! A report as one self-contained HTML page: tables, and plots as SVG. Computes no figure.

use std::fmt::Write as _;

use crate::figures::{Row, Spread};
use crate::report::{NO_FAULTS, Plot, PlotKind, Report, Series};
use crate::table::{number, unit};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --rule: #d9dce1; --paper: #fff; --good: #1a7f4b; --bad: #b3261e;
  --c0: #0b6bcb; --c1: #d9730d; --c2: #17806d; --c3: #9c36b5; --c4: #c2255c; --c5: #5c940d; --c6: #495057; --c7: #1098ad; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a1a6ae; --rule: #363a3f; --paper: #151718; --good: #4cc38a;
  --bad: #ff8a80; --c0: #70b8ff; --c1: #ffa057; --c2: #63d4bb; --c3: #d19dff; --c4: #ff8dab; --c5: #b0d56a; --c6: #adb5bd; --c7: #66d9e8; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { color: var(--soft); margin: .25rem 0; } p.good { color: var(--good); } p.bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); } td.range { color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; } .line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 6 4; }
ul.legend { list-style: none; padding: 0; margin: .25rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; color: var(--soft); font-size: .9rem; }
ul.legend i { display: inline-block; width: 1.4rem; border-top: 3px solid; margin-right: .4rem; vertical-align: middle; } i.dashed { border-top-style: dashed; }
";

/// The size of a plot and of its margins, in SVG units.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Renders the page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::new();
    let title = escape(report.what);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    let facts: Vec<String> = report.facts().iter().map(|(name, value)| format!("{name} {value}")).collect();
    let _ = writeln!(page, "<p>{}</p>", escape(&facts.join(" · ")));
    for account in &report.accounts {
        let _ = writeln!(page, "<p>{}</p>", escape(account));
    }
    if report.faults.is_empty() {
        let _ = writeln!(page, "<p class=\"good\">{NO_FAULTS}</p>");
    }
    for fault in &report.faults {
        let _ = writeln!(page, "<p class=\"bad\">{}</p>", escape(fault));
    }
    figures(&mut page, &report.figures);
    for plot in report.plots.iter().filter(|plot| plot.series.iter().any(|series| !series.points.is_empty()))
    {
        draw(&mut page, plot);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn figures(page: &mut String, rows: &[Row]) {
    page.push_str(
        "<h2>Figures</h2>\n<p>Medians, with the range over all pairs of windows. A ratio is computed for each pair.</p>\n\
         <div class=\"wide\"><table>\n<tr><th></th><th>measured</th><th>range</th><th>reference</th><th>ratio</th>\
         <th>range</th></tr>\n",
    );
    for row in rows {
        let of = |spread: &Spread| format!("{} {}", number(spread.median), unit(row.unit));
        let range = |spread: &Spread| format!("{} to {}", number(spread.min), number(spread.max));
        let (reference, ratio) = (row.reference.as_ref(), row.ratio.as_ref());
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"range\">{}</td><td>{}</td><td>{}</td><td class=\"range\">{}</td></tr>",
            escape(row.name),
            escape(&of(&row.server)),
            range(&row.server),
            reference.map(of).unwrap_or_default(),
            ratio.map(|ratio| number(ratio.median)).unwrap_or_default(),
            ratio.map(range).unwrap_or_default(),
        );
    }
    page.push_str("</table></div>\n");
}

/// The mapping from values to coordinates.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    kind: PlotKind,
}

impl Axes {
    fn of(plot: &Plot) -> Self {
        let points = || plot.series.iter().flat_map(|series| &series.points).filter(|point| is_finite(point));
        let kind = plot.kind;
        let fold = |pick: fn(&(f64, f64)) -> f64| {
            points().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let ((x_low, x_high), (y_low, y_high)) = (fold(|point| point.0), fold(|point| point.1));
        match kind {
            PlotKind::Latency => Self { x: (0.0, 4.3), y: (decade_below(y_low), decade_above(y_high)), kind },
            PlotKind::Linear => {
                let x = (x_low.min(0.0), if x_high > x_low { x_high } else { x_low + 1.0 });
                Self { x, y: (0.0, if y_high > 0.0 { y_high * 1.08 } else { 1.0 }), kind }
            }
        }
    }

    /// Maps a point to values between 0 and 1 along both axes.
    fn normalize(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let share = |value: f64, (low, high): (f64, f64)| ((value - low) / (high - low)).clamp(0.0, 1.0);
        match self.kind {
            PlotKind::Linear => (share(x, self.x), share(y, self.y)),
            PlotKind::Latency => (share(nines(x), self.x), share(y.max(1e-6).log10(), self.y)),
        }
    }

    fn at(&self, point: (f64, f64)) -> (f64, f64) {
        let (x, y) = self.normalize(point);
        (LEFT + x * (WIDTH - LEFT - RIGHT), TOP + (1.0 - y) * (HEIGHT - TOP - BOTTOM))
    }
}

/// Maps a quantile so that each further nine takes the same width; 100 % is placed at 99.995 %.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile.clamp(0.0, 0.999_95)).log10()
}

fn decade_below(value: f64) -> f64 {
    value.max(1e-3).log10().floor()
}

fn decade_above(value: f64) -> f64 {
    let above = value.max(1e-3).log10().ceil();
    if above > decade_below(value) { above } else { above + 1.0 }
}

fn is_finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

fn draw(page: &mut String, plot: &Plot) {
    let axes = Axes::of(plot);
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">",
        escape(&plot.title)
    );
    grid(page, plot, &axes);
    for (index, series) in plot.series.iter().enumerate() {
        let points: Vec<(f64, f64)> = series.points.iter().copied().filter(is_finite).collect();
        if points.is_empty() {
            continue;
        }
        let coordinates: Vec<String> =
            points.iter().map(|point| axes.at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (class, color) = style_of(index, series);
        let _ = writeln!(
            page,
            "<polyline class=\"{class}\" style=\"stroke: var(--c{color})\" points=\"{}\"><title>{}</title></polyline>",
            coordinates.join(" "),
            escape(&series.name)
        );
        if let [(x, y)] = points[..] {
            let (x, y) = axes.at((x, y));
            let _ = writeln!(
                page,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" style=\"fill: var(--c{color})\"/>"
            );
        }
    }
    page.push_str("</svg>\n<ul class=\"legend\">\n");
    for (index, series) in plot.series.iter().enumerate() {
        let (class, color) = style_of(index, series);
        let dashed = if class.ends_with("dashed") { "dashed" } else { "" };
        let _ = writeln!(
            page,
            "<li><i class=\"{dashed}\" style=\"border-color: var(--c{color})\"></i>{}</li>",
            escape(&series.name)
        );
    }
    page.push_str("</ul>\n");
}

/// Returns the class and the colour of a line. The reference is dashed.
fn style_of(index: usize, series: &Series) -> (&'static str, usize) {
    let class = if series.name.starts_with("reference") { "line dashed" } else { "line" };
    (class, index / 2 % 8)
}

fn grid(page: &mut String, plot: &Plot, axes: &Axes) {
    for (value, label) in ticks_y(axes) {
        let (_, y) = axes.at((0.0, value));
        let (right, text) = (WIDTH - RIGHT, LEFT - 8.0);
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            y + 4.0
        );
    }
    for (value, label) in ticks_x(axes) {
        let (x, _) = axes.at((value, 1.0));
        let (bottom, text) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 16.0);
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{text}\" text-anchor=\"middle\">{label}</text>"
        );
    }
    let (middle, bottom) = (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 6.0);
    let (x_title, y_title, height) = (escape(&plot.x), escape(&plot.y), f64::midpoint(TOP, HEIGHT - BOTTOM));
    let _ = writeln!(
        page,
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{x_title}</text>\
         <text x=\"14\" y=\"{height:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {height:.1})\">{y_title}</text>"
    );
}

fn ticks_x(axes: &Axes) -> Vec<(f64, String)> {
    match axes.kind {
        PlotKind::Linear => round_values(axes.x),
        PlotKind::Latency => {
            [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (1.0, "max")]
                .map(|(at, label)| (at, label.to_owned()))
                .into()
        }
    }
}

fn ticks_y(axes: &Axes) -> Vec<(f64, String)> {
    match axes.kind {
        PlotKind::Linear => round_values(axes.y),
        PlotKind::Latency => {
            let decades = axes.y.0 as i32..=axes.y.1 as i32;
            decades.map(|decade| 10_f64.powi(decade)).map(|value| (value, tick_label(value))).collect()
        }
    }
}

/// Returns about five round values.
fn round_values((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let rough = (high - low) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let ticks =
        (first..first + 12).map(|tick| tick as f64 * step).take_while(|value| *value <= high * (1.0 + 1e-9));
    ticks.map(|value| (value, tick_label(value))).collect()
}

fn tick_label(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.1 { format!("{value}") } else { number(value) }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(kind: PlotKind, points: &[&[(f64, f64)]]) -> String {
        let series =
            points.iter().map(|points| Series { name: "a<b".into(), points: points.to_vec() }).collect();
        let mut page = String::new();
        draw(&mut page, &Plot { title: "t".into(), x: "x".into(), y: "y & z".into(), kind, series });
        page
    }

    /// Checks that every tag is closed, in order.
    fn check_balanced(page: &str) {
        let mut open = Vec::new();
        for tag in page.split('<').skip(1) {
            let tag = tag.split('>').next().unwrap();
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
                None if tag.ends_with('/') || tag.starts_with('!') || tag.starts_with("meta") => {}
                None => open.push(tag.split_whitespace().next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn plots_of_any_values() {
        for kind in [PlotKind::Latency, PlotKind::Linear] {
            for points in [
                &[&[(0.0, 1.0), (0.5, 2.0), (1.0, 300.0)][..]][..],
                &[&[], &[(0.5, 0.5)]],
                &[&[(f64::NAN, 1.0), (1.0, f64::INFINITY), (0.9, 1e12)]],
                &[&[(0.0, 0.0), (0.0, 0.0)]],
            ] {
                let page = plot(kind, points);
                check_balanced(&page);
                assert!(page.contains("a&lt;b") && page.contains("y &amp; z"), "{page}");
                assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
            }
        }
    }

    #[test]
    fn round_ticks() {
        let labels = |range| round_values(range).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels((0.0, 10_000.0)), ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]);
        assert_eq!(labels((0.0, 0.3)), ["0", "0.10", "0.20", "0.30"]);
    }
}
