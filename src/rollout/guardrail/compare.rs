//! The new arm against the others, by comparisons that may be looked at always.

use super::{Comparison, Counts, Guardrails, Name, Outcome, Verdict, troubles};
use crate::rollout::{
    cohort::{Jackknife, new_share},
    measure::{Failure, Groups, Measured, Sums},
    statistics::{
        Interval,
        count::Evidence,
        mean::{Difference, Mean, TUNED_FOR},
        ratio,
    },
};

/// Before so many users per arm a mean's spread is not known well enough.
const MIN_USERS: u64 = 50;
/// Nor before so many slow deliveries in the new arm.
const MIN_SLOW: f64 = 10.0;

const _: () = assert!((Jackknife::COUNT as usize).is_multiple_of(Groups::COUNT));

pub(super) fn judge(guardrails: &Guardrails, measured: &Measured) -> Vec<Verdict> {
    let sums = measured.comparable();
    let comparisons = &guardrails.comparisons;
    let mut verdicts: Vec<_> = troubles(comparisons)
        .into_iter()
        .map(|(name, trouble, comparison)| users(guardrails, name, comparison, &sums, trouble))
        .collect();
    verdicts.push(slow(guardrails, &comparisons.slow, &sums));
    verdicts.push(memory(guardrails, &comparisons.memory, &sums));
    verdicts.push(sample_ratio(guardrails, &comparisons.sample_ratio, measured));
    verdicts
}

/// Users whom a trouble befell: the count e-process, over all stages and nodes.
fn users(
    guardrails: &Guardrails,
    name: Name,
    comparison: &Comparison,
    sums: &Sums,
    trouble: Failure,
) -> Verdict {
    let evidence: &Evidence = sums.evidence(trouble);
    let margin = comparison.margin.unwrap_or(guardrails.margin);
    let alpha = guardrails.level(comparison);
    let log_e = evidence.log_e(margin);
    let needed = -alpha.ln();
    let affected = evidence.new_events() >= guardrails.min_affected_users;
    let outcome = match evidence.events() {
        0 => Outcome::Unknown,
        _ if log_e >= needed && affected => Outcome::Broken,
        _ => Outcome::Kept,
    };
    let mut verdict = Verdict::new(name, comparison.mode, outcome);
    let others = evidence.events() - evidence.new_events();
    verdict.new = Counts { with: evidence.new_events(), of: sums.new.users };
    verdict.control = Counts { with: others, of: sums.control.users + sums.rest.users };
    verdict.estimate = evidence.rate_ratio();
    verdict.interval = (evidence.events() > 0).then(|| evidence.interval(alpha));
    verdict.threshold = 1.0 + margin;
    (verdict.log_e, verdict.log_e_needed) = (Some(log_e), Some(needed));
    let (new, control) = (verdict.new, verdict.control);
    verdict.sentence = match (outcome, verdict.estimate, verdict.interval) {
        (Outcome::Broken, Some(ratio), Some(interval)) => format!(
            "{name} befall users of the new arm {ratio:.1} times as often as the others (at least \
             {:.2} times; {:.2} is tolerated): {new} against {control}",
            interval.lower,
            1.0 + margin,
        ),
        (Outcome::Unknown, ..) => format!("{name}: none in either arm yet"),
        _ => format!("{name}: {new} users of the new arm against {control}, no sign of harm"),
    };
    verdict
}

/// Slow deliveries: the confidence sequence of a proportion, its spread taken between groups.
fn slow(guardrails: &Guardrails, comparison: &Comparison, sums: &Sums) -> Verdict {
    let mean = |arm: &crate::rollout::measure::Arm| Mean::of_groups(arm.users, arm.slow.pairs());
    let slow: f64 = sums.new.slow.pairs().map(|(_, slow)| slow).sum();
    let affected = sums.new.users_with(Failure::Slow) >= guardrails.min_affected_users;
    let enough = slow >= MIN_SLOW && affected;
    let mut verdict = means(
        guardrails,
        Name::Slow,
        comparison,
        sums,
        [mean(&sums.new), mean(&sums.control)],
        enough,
    );
    let counts = |groups: &Groups| {
        let (of, with) = groups.pairs().fold((0.0, 0.0), |sum, (n, x)| (sum.0 + n, sum.1 + x));
        Counts { with: with as u64, of: of as u64 }
    };
    verdict.new = counts(&sums.new.slow);
    verdict.control = counts(&sums.control.slow);
    verdict.sentence = format!(
        "deliveries above {} ms: {} in the new arm against {}, {}",
        guardrails.slow_above_ms,
        verdict.new,
        verdict.control,
        in_words(verdict.outcome),
    );
    verdict
}

/// What a session costs: the confidence sequence of a mean.
fn memory(guardrails: &Guardrails, comparison: &Comparison, sums: &Sums) -> Verdict {
    let mean = |arm: &crate::rollout::measure::Arm| Mean::of_groups(arm.users, arm.memory.pairs());
    let arms = [mean(&sums.new), mean(&sums.control)];
    let mut verdict = means(guardrails, Name::Memory, comparison, sums, arms, true);
    let kilobytes = |mean: Option<Mean>| mean.map_or(0.0, |mean| mean.mean / 1024.0);
    verdict.sentence = format!(
        "a session of the new arm takes {:.1} KiB against {:.1} KiB, {}",
        kilobytes(arms[0]),
        kilobytes(arms[1]),
        in_words(verdict.outcome),
    );
    verdict
}

fn in_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Kept => "no sign of harm",
        Outcome::Broken => "more than is tolerated",
        Outcome::Unknown => "too few to tell",
    }
}

/// Whether the new mean is above `1 + margin` times the other. Asked as a difference, so that a
/// control arm without any trouble needs no division.
fn means(
    guardrails: &Guardrails,
    name: Name,
    comparison: &Comparison,
    sums: &Sums,
    arms: [Option<Mean>; 2],
    enough: bool,
) -> Verdict {
    let tolerated = 1.0 + comparison.margin.unwrap_or(guardrails.margin);
    let alpha = guardrails.level(comparison);
    let users = sums.new.users.min(sums.control.users);
    let ([Some(new), Some(control)], true) = (arms, users >= MIN_USERS) else {
        let mut verdict = Verdict::new(name, comparison.mode, Outcome::Unknown);
        verdict.threshold = tolerated;
        return verdict;
    };
    let excess = Difference::absolute(new, control.times(tolerated));
    let broken = enough && excess.lower(alpha, TUNED_FOR) > 0.0;
    let outcome = if broken { Outcome::Broken } else { Outcome::Kept };
    let mut verdict = Verdict::new(name, comparison.mode, outcome);
    let relative = Difference::relative(new, control);
    verdict.estimate = relative.map(|difference| 1.0 + difference.estimate);
    verdict.interval = relative.map(|difference| {
        let Interval { lower, upper } = difference.two_sided(alpha, TUNED_FOR);
        Interval { lower: 1.0 + lower, upper: 1.0 + upper }
    });
    verdict.threshold = tolerated;
    verdict
}

/// The users of this stage against the sizes planned for it.
fn sample_ratio(guardrails: &Guardrails, comparison: &Comparison, measured: &Measured) -> Verdict {
    let (new, control) = (&measured.current.new, &measured.current.control);
    let planned = measured.window.map_or(0.5, |window| new_share(window.percentage));
    let needed = -guardrails.level(comparison).ln();
    let users = new.users + control.users;
    if planned >= 1.0 || users == 0 {
        let mut verdict = Verdict::new(Name::SampleRatio, comparison.mode, Outcome::Unknown);
        verdict.threshold = 100.0 * planned;
        verdict.sentence = "there are not two arms to compare".to_owned();
        return verdict;
    }
    let groups = new.members.pairs().zip(control.members.pairs());
    let spread = ratio::dispersion(groups.map(|((new, _), (control, _))| (new, control)));
    let counts = [new.users as f64 / spread, control.users as f64 / spread];
    let log_e = ratio::log_bayes(&counts, &[planned, 1.0 - planned]);
    let outcome = if log_e >= needed { Outcome::Broken } else { Outcome::Kept };
    let mut verdict = Verdict::new(Name::SampleRatio, comparison.mode, outcome);
    verdict.new = Counts { with: new.users, of: users };
    verdict.control = Counts { with: control.users, of: users };
    verdict.estimate = Some(verdict.new.percent());
    verdict.threshold = 100.0 * planned;
    (verdict.log_e, verdict.log_e_needed) = (Some(log_e), Some(needed));
    let (found, planned) = (verdict.new, 100.0 * planned);
    verdict.sentence = match outcome {
        Outcome::Broken => format!(
            "the new arm has {found} of the users compared instead of {planned:.1} %: users are lost \
             before they are counted, so trust no comparison and look at how they are assigned"
        ),
        _ => format!("the new arm has {found} of the users compared, planned are {planned:.1} %"),
    };
    verdict
}
