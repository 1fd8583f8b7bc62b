//! What is to be said of the figures of a flow, target by target.

use hdrhistogram::Histogram;
use serde_json::json;

use super::{Report, Run, Table};
use crate::engine::{
    Pace, Plan,
    figures::{Figures, Spread},
};

/// Figures with what a scenario adds to them.
#[derive(Debug)]
pub struct Findings {
    scenario: &'static str,
    title: String,
    figures: Vec<Figures>,
    columns: Vec<(&'static str, Vec<String>)>,
    notes: Vec<String>,
    failures: Vec<String>,
    /// Whom the others are compared with.
    reference: usize,
    closed: bool,
}

/// The shares of which a latency is kept, for charts.
const SHARES: [f64; 26] = [
    0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.985,
    0.99, 0.993, 0.995, 0.997, 0.999, 0.9995, 0.9999, 0.99999, 1.0,
];

impl Findings {
    /// Those of a plan.
    pub fn new(scenario: &'static str, plan: &Plan, rounds: usize, figures: Vec<Figures>) -> Self {
        let reference = figures.iter().position(|one| one.target.starts_with("limit")).unwrap_or(0);
        let mut findings = Self {
            scenario,
            title: title(scenario, plan, rounds),
            figures,
            columns: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            reference,
            closed: matches!(plan.pace, Pace::Window(_)),
        };
        findings.note(
            "CPU: user and system time of the server for a delivery, the median of the rounds. \
             Latency: from when an event was due to be published until a subscriber read it.",
        );
        if 1 < findings.figures.len() {
            let whom = findings.figures[reference].target.clone();
            findings.note(&format!(
                "Ratios: {whom} = 1 in the same round; the median of the rounds, with the lowest \
                 and the highest."
            ));
        }
        findings
    }

    /// Adds a column with a cell for each target.
    pub fn column(&mut self, head: &'static str, cells: Vec<String>) {
        self.columns.push((head, cells));
    }

    /// Adds a sentence.
    pub fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// Adds a reason to fail.
    pub fn fail(&mut self, reason: String) {
        self.failures.push(reason);
    }

    /// Fails for what is wrong, and for whoever costs too much.
    pub fn check(&mut self, max_ratio: Option<f64>) {
        for at in 0..self.figures.len() {
            let ratio = self.cost_ratio(at).median;
            let dear = max_ratio.filter(|max| *max < ratio).map(|max| {
                let whom = &self.figures[self.reference].target;
                format!("{ratio:.2} times the CPU of {whom}, {max} allowed")
            });
            let target = self.figures[at].target.clone();
            let complaints = self.wrong(at).into_iter().chain(dear);
            self.failures.extend(complaints.map(|what| format!("{target}: {what}")));
        }
    }

    /// What went wrong with a target's deliveries.
    pub fn wrong(&self, at: usize) -> Option<String> {
        self.figures[at].tally().complaint()
    }

    /// What a delivery costs a target, as a multiple of what it costs the reference.
    pub fn cost_ratio(&self, at: usize) -> Spread {
        Spread::of_ratios(&self.figures[at].costs(), &self.figures[self.reference].costs())
    }

    fn p99_ratio(&self, at: usize) -> Spread {
        let p99 = |figures: &Figures| figures.by_turn(|turn| turn.p99_ms);
        Spread::of_ratios(&p99(&self.figures[at]), &p99(&self.figures[self.reference]))
    }

    /// All of it.
    pub fn into_report(self) -> Report {
        let compares = 1 < self.figures.len();
        let mut heads = vec!["target", "deliveries/s", "published/s", "CPU µs"];
        if compares {
            heads.extend(["CPU ratio", "p99 ratio"]);
        }
        heads.extend(["p50 ms", "p99 ms", "max ms", "answered p99", "bytes", "peak MB"]);
        heads.extend(["lost", "doubled", "reordered", "closed"]);
        heads.extend(self.columns.iter().map(|(head, _)| *head));
        let heads = heads.into_iter().map(str::to_owned).collect();
        let rows = (0..self.figures.len()).map(|at| self.row(at, compares));
        let table = Table { rows: std::iter::once(heads).chain(rows).collect() };
        let runs = (0..self.figures.len()).map(|at| self.run(at)).collect();
        Report {
            scenario: self.scenario.to_owned(),
            title: self.title,
            table,
            notes: self.notes,
            runs,
            failures: self.failures,
        }
    }

    fn row(&self, at: usize, compares: bool) -> Vec<String> {
        let one = &self.figures[at];
        let tally = one.tally();
        let mut row = vec![
            one.target.clone(),
            format!("{:.0}", one.per_second().median),
            format!("{:.0}", one.published_per_second().median),
            format!("{:.3}", Spread::of(one.costs()).median),
        ];
        if compares {
            let words = |ratio: Spread| {
                format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.lowest, ratio.highest)
            };
            row.extend([words(self.cost_ratio(at)), words(self.p99_ratio(at))]);
        }
        row.extend([0.5, 0.99, 1.0].map(|quantile| format!("{:.2}", one.latency_ms(quantile))));
        row.extend([
            format!("{:.2}", one.answer_ms(0.99)),
            format!("{:.0}", one.bytes_each()),
            format!("{:.0}", one.peak_mb()),
        ]);
        let wrong = [tally.lost, tally.doubled, tally.reordered, tally.gone];
        row.extend(wrong.map(|count| count.to_string()));
        row.extend(self.columns.iter().map(|(_, cells)| cells[at].clone()));
        row
    }

    fn run(&self, at: usize) -> Run {
        let one = &self.figures[at];
        let mut figures = json!({
            "deliveries_per_second": one.per_second(),
            "published_per_second": one.published_per_second(),
            "cpu_us_each": Spread::of(one.costs()),
            "cpu_us_each_by_round": one.costs(),
            "cpu_ratio": self.cost_ratio(at),
            "p99_ms_by_round": one.by_turn(|turn| turn.p99_ms),
            "p99_ratio": self.p99_ratio(at),
            "p50_ms": one.latency_ms(0.5),
            "p99_ms": one.latency_ms(0.99),
            "max_ms": one.latency_ms(1.0),
            "answered_p50_ms": one.answer_ms(0.5),
            "answered_p99_ms": one.answer_ms(0.99),
            "bytes_each": one.bytes_each(),
            "peak_mb": one.peak_mb(),
            "closed_loop": self.closed,
            "tally": one.tally(),
        });
        for (head, cells) in &self.columns {
            figures[*head] = json!(cells[at]);
        }
        Run {
            target: one.target.clone(),
            figures,
            latency: curve(&one.latency),
            answers: curve(&one.answers),
            samples: one.samples.clone(),
        }
    }
}

fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    // A share that stands for less than one delivery says nothing.
    let finest = 1.0 - 1.0 / histogram.len() as f64;
    let shares = SHARES.iter().filter(|share| **share <= finest || **share == 1.0);
    shares.map(|share| (*share, histogram.value_at_quantile(*share) as f64 / 1e6)).collect()
}

fn title(scenario: &str, plan: &Plan, rounds: usize) -> String {
    let Plan { subscribers, channels, publishers, bytes, burst, .. } = plan;
    let pace = match plan.pace {
        Pace::Rate(rate) => format!("{rate} bursts/s"),
        Pace::Window(1) => "the next when everybody has the last".to_owned(),
        Pace::Window(window) => format!("{window} under way"),
    };
    let of = if *burst == 1 { "one event each".to_owned() } else { format!("{burst} events each") };
    format!(
        "{scenario}: {subscribers} subscribers, {channels} channels, {publishers} publishers, \
         {bytes} bytes, {pace}, {of}, {rounds} rounds"
    )
}
