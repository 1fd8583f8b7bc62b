//! Reports as one page that needs nothing else: no script, no font, no address.

use std::fmt::Write as _;

use super::{
    Report, Run, Table,
    chart::{Axis, Chart, Scale, escape},
};
use crate::engine::sampler::Sample;

/// The page.
pub fn page(reports: &[Report]) -> String {
    let titles: Vec<&str> = reports.iter().map(|report| report.scenario.as_str()).collect();
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>crossfade-load: {}</title><style>{COLOURS}{LAYOUT}{LINES}</style></head><body><main>\
         <h1>crossfade-load</h1>",
        escape(&titles.join(", "))
    );
    for report in reports {
        section(&mut html, report);
    }
    html + "</main></body></html>\n"
}

fn section(html: &mut String, report: &Report) {
    let (scenario, details) = report.title.split_once(": ").unwrap_or((&report.title, ""));
    let _ = write!(html, "<section><h2>{}</h2><p>{}</p>", escape(scenario), escape(details));
    for failure in &report.failures {
        let _ = write!(html, "<p class=\"failure\">{}</p>", escape(failure));
    }
    table(html, &report.table);
    legend(html, &report.runs);
    html.push_str("<div class=\"charts\">");
    html.extend(charts(&report.runs).iter().map(Chart::svg));
    html.push_str("</div>");
    for note in &report.notes {
        let _ = write!(html, "<p class=\"note\">{}</p>", escape(note));
    }
    html.push_str("</section>");
}

fn table(html: &mut String, table: &Table) {
    html.push_str("<div class=\"table\"><table>");
    for (at, row) in table.rows.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<{tag}>{}</{tag}>", escape(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

fn legend(html: &mut String, runs: &[Run]) {
    if runs.is_empty() {
        return;
    }
    html.push_str("<ul class=\"legend\">");
    for (number, run) in runs.iter().enumerate() {
        let _ = write!(html, "<li class=\"c{}\">{}</li>", number % 8, escape(&run.target));
    }
    html.push_str("</ul>");
}

fn charts(runs: &[Run]) -> Vec<Chart<'_>> {
    let share = || Axis { name: "% of deliveries", scale: Scale::Nines };
    let milliseconds = || Axis { name: "ms", scale: Scale::Log };
    let linear = |name| Axis { name, scale: Scale::Linear };
    let over_time = |title, y: Axis<'static>, of: fn(&Sample) -> f64| {
        let line = |run: &Run| run.samples.iter().map(|one| (one.at, of(one))).collect();
        let lines = runs.iter().map(|run| (run.target.as_str(), line(run))).collect();
        Chart { title, x: linear("seconds"), y, lines }
    };
    let curve = |title, x: Axis<'static>, of: fn(&Run) -> &[(f64, f64)]| {
        let lines = runs.iter().map(|run| (run.target.as_str(), of(run).to_vec())).collect();
        Chart { title, x, y: milliseconds(), lines }
    };
    let mut charts = vec![
        curve("Latency of deliveries", share(), |run| &run.latency),
        curve("Latency of publishers' answers", Axis { name: "% of calls", ..share() }, |run| {
            &run.answers
        }),
        over_time("99th percentile of deliveries", milliseconds(), |sample| sample.p99_ms),
        over_time("Deliveries", linear("a second"), |sample| sample.deliveries),
        over_time("CPU of the server", linear("CPUs"), |sample| sample.cpus),
        over_time("Memory of the server", linear("MB resident"), |sample| sample.resident_mb),
    ];
    if runs.iter().any(comes_and_goes) {
        charts.push(over_time("Subscribed", linear("subscribers"), |one| one.subscribed as f64));
    }
    charts
}

/// The charts of a report as files of their own: names and contents.
pub fn files(report: &Report) -> Vec<(String, String)> {
    let style = format!("{COLOURS}{LINES}");
    let name = |chart: &Chart<'_>| {
        let words = format!("{} {}", report.scenario, chart.title).to_lowercase();
        words.replace(' ', "-").replace('\'', "") + ".svg"
    };
    let charts = charts(&report.runs);
    let files = charts.iter().map(|chart| (name(chart), chart.file(&style)));
    files.filter(|(_, svg)| !svg.is_empty()).collect()
}

fn comes_and_goes(run: &Run) -> bool {
    run.samples.windows(2).any(|pair| pair[0].subscribed != pair[1].subscribed)
}

const COLOURS: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#626a73;--rule:#dfe3e8;\
--c0:#1f6feb;--c1:#d1570a;--c2:#1a7f37;--c3:#a4268f;--c4:#8a6d00;--c5:#0f7c8a;--c6:#c02641;\
--c7:#6e5bd6}\
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e4e7eb;--soft:#98a1ab;\
--rule:#2c323a;--c0:#6cb0ff;--c1:#ff9d57;--c2:#5fd07c;--c3:#ef8be0;--c4:#e0c04a;--c5:#5cd2e0;\
--c6:#ff8097;--c7:#b3a5ff}}";

const LINES: &str = "\
.paper{fill:var(--paper)}.title{fill:var(--ink);font-size:14px;font-weight:600}\
.grid{stroke:var(--rule);stroke-width:1;fill:none}.tick,.name{fill:var(--soft);\
font-size:11px}.line{fill:none;stroke:var(--line);stroke-width:1.8;stroke-linejoin:round}\
.c0{--line:var(--c0)}.c1{--line:var(--c1)}.c2{--line:var(--c2)}.c3{--line:var(--c3)}\
.c4{--line:var(--c4)}.c5{--line:var(--c5)}.c6{--line:var(--c6)}.c7{--line:var(--c7)}";

const LAYOUT: &str = "\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}main{max-width:1400px;margin:0 auto;padding:24px}\
h1{font-size:20px;margin:0 0 8px}h2{font-size:18px;margin:32px 0 0}p{margin:4px 0 12px}\
.note{color:var(--soft);margin:4px 0;max-width:90ch}.failure{color:var(--c6);font-weight:600}\
.table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;\
font-size:13px}th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--rule);\
white-space:nowrap}th{color:var(--soft);font-weight:500}th:first-child,td:first-child{\
text-align:left;padding-left:0}.legend{list-style:none;display:flex;flex-wrap:wrap;gap:6px 20px;\
padding:0;margin:16px 0 4px}.legend li::before{content:'';display:inline-block;width:18px;\
height:3px;vertical-align:middle;margin-right:8px;background:var(--line)}\
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:20px}\
figure{margin:0}figcaption{font-weight:600;font-size:14px}svg{width:100%;height:auto;\
display:block}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_asks_nobody_for_anything() {
        let samples = vec![Sample { at: 1.0, deliveries: 5.0, ..Sample::default() }];
        let run = Run {
            target: "a<b".to_owned(),
            figures: serde_json::Value::Null,
            latency: vec![(0.0, 0.1), (0.99, 2.0)],
            answers: Vec::new(),
            samples,
        };
        let report = Report {
            scenario: "fanout".to_owned(),
            title: "fanout: 1 subscriber".to_owned(),
            table: Table::new(["target"]),
            notes: vec!["noted".to_owned()],
            runs: vec![run],
            failures: vec!["wrong".to_owned()],
        };
        let html = page(&[report]);
        assert!(html.contains("a&lt;b") && html.contains("<svg") && html.contains("noted"));
        for word in ["http", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!html.contains(word), "{word} in the page");
        }
    }
}
