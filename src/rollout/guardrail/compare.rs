//! Guardrails that compare the new arm with the other users.

use super::{Comparison, Counts, GuardrailName, Guardrails, Outcome, Verdict, failure_comparisons};
use crate::rollout::{
    cohort::{Jackknife, new_share},
    measure::{Failure, Groups, Measurements, Totals},
    statistics::{
        Interval,
        count::Evidence,
        mean::{Difference, Mean, TUNED_FOR},
        ratio,
    },
};

/// Fewer users per arm than this do not determine the variance of a mean.
const MIN_USERS: u64 = 50;
/// Fewer slow deliveries in the new arm than this violate nothing.
const MIN_SLOW: f64 = 10.0;

const _: () = assert!((Jackknife::COUNT as usize).is_multiple_of(Groups::COUNT));

pub(super) fn judge(guardrails: &Guardrails, measurements: &Measurements) -> Vec<Verdict> {
    let totals = measurements.comparable();
    let comparisons = &guardrails.comparisons;
    let mut verdicts: Vec<_> = failure_comparisons(comparisons)
        .into_iter()
        .map(|(name, failure, comparison)| {
            users_with_failure(guardrails, name, comparison, &totals, failure)
        })
        .collect();
    verdicts.push(slow(guardrails, &comparisons.slow, &totals));
    verdicts.push(memory(guardrails, &comparisons.memory, &totals));
    verdicts.push(sample_ratio(guardrails, &comparisons.sample_ratio, measurements));
    verdicts
}

/// Users with a failure, by the count e-process over all stages and nodes.
fn users_with_failure(
    guardrails: &Guardrails,
    name: GuardrailName,
    comparison: &Comparison,
    totals: &Totals,
    failure: Failure,
) -> Verdict {
    let evidence: &Evidence = totals.evidence(failure);
    let margin = comparison.margin.unwrap_or(guardrails.margin);
    let alpha = guardrails.level(comparison);
    let log_e = evidence.log_e(margin);
    let log_e_needed = -alpha.ln();
    let enough_users = evidence.new_events() >= guardrails.min_affected_users;
    let outcome = match evidence.events() {
        0 => Outcome::Unknown,
        _ if log_e >= log_e_needed && enough_users => Outcome::Violated,
        _ => Outcome::Passed,
    };
    let mut verdict = Verdict::new(name, comparison.mode, outcome);
    let others = evidence.events() - evidence.new_events();
    verdict.new = Counts { affected: evidence.new_events(), total: totals.new.users };
    verdict.control = Counts { affected: others, total: totals.control.users + totals.rest.users };
    verdict.estimate = evidence.rate_ratio();
    verdict.interval = (evidence.events() > 0).then(|| evidence.interval(alpha));
    verdict.threshold = 1.0 + margin;
    (verdict.log_e, verdict.log_e_needed) = (Some(log_e), Some(log_e_needed));
    let (new, control) = (verdict.new, verdict.control);
    verdict.summary = match (outcome, verdict.estimate, verdict.interval) {
        (Outcome::Violated, Some(ratio), Some(interval)) => format!(
            "{name} affect users of the new arm {ratio:.1} times as often as the others (at least \
             {:.2} times; {:.2} is tolerated): {new} against {control}",
            interval.lower,
            1.0 + margin,
        ),
        (Outcome::Unknown, ..) => format!("{name}: none in either arm yet"),
        _ => format!("{name}: {new} users of the new arm against {control}, no sign of harm"),
    };
    verdict
}

/// Share of slow deliveries, by the confidence sequence of a proportion with the variance between
/// groups.
fn slow(guardrails: &Guardrails, comparison: &Comparison, totals: &Totals) -> Verdict {
    let mean =
        |arm: &crate::rollout::measure::ArmCounts| Mean::of_groups(arm.users, arm.slow.pairs());
    let slow: f64 = totals.new.slow.pairs().map(|(_, slow)| slow).sum();
    let enough_users =
        totals.new.users_with(Failure::SlowDelivery) >= guardrails.min_affected_users;
    let enough = slow >= MIN_SLOW && enough_users;
    let mut verdict = means(
        guardrails,
        GuardrailName::Slow,
        comparison,
        totals,
        [mean(&totals.new), mean(&totals.control)],
        enough,
    );
    let counts = |groups: &Groups| {
        let (total, affected) =
            groups.pairs().fold((0.0, 0.0), |sum, (n, x)| (sum.0 + n, sum.1 + x));
        Counts { affected: affected as u64, total: total as u64 }
    };
    verdict.new = counts(&totals.new.slow);
    verdict.control = counts(&totals.control.slow);
    verdict.summary = format!(
        "deliveries above {} ms: {} in the new arm against {}, {}",
        guardrails.slow_above_ms,
        verdict.new,
        verdict.control,
        outcome_text(verdict.outcome),
    );
    verdict
}

/// Memory per session, by the confidence sequence of a mean.
fn memory(guardrails: &Guardrails, comparison: &Comparison, totals: &Totals) -> Verdict {
    let mean =
        |arm: &crate::rollout::measure::ArmCounts| Mean::of_groups(arm.users, arm.memory.pairs());
    let arms = [mean(&totals.new), mean(&totals.control)];
    let mut verdict = means(guardrails, GuardrailName::Memory, comparison, totals, arms, true);
    let kibibytes = |mean: Option<Mean>| mean.map_or(0.0, |mean| mean.mean / 1024.0);
    verdict.summary = format!(
        "a session of the new arm takes {:.1} KiB against {:.1} KiB, {}",
        kibibytes(arms[0]),
        kibibytes(arms[1]),
        outcome_text(verdict.outcome),
    );
    verdict
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "no sign of harm",
        Outcome::Violated => "more than is tolerated",
        Outcome::Unknown => "too few to tell",
    }
}

/// Tests whether the mean of the new arm exceeds `1 + margin` times that of the control arm. Tested
/// as a difference, so that a control arm with mean zero needs no division.
fn means(
    guardrails: &Guardrails,
    name: GuardrailName,
    comparison: &Comparison,
    totals: &Totals,
    arms: [Option<Mean>; 2],
    enough: bool,
) -> Verdict {
    let tolerated = 1.0 + comparison.margin.unwrap_or(guardrails.margin);
    let alpha = guardrails.level(comparison);
    let users = totals.new.users.min(totals.control.users);
    let ([Some(new), Some(control)], true) = (arms, users >= MIN_USERS) else {
        let mut verdict = Verdict::new(name, comparison.mode, Outcome::Unknown);
        verdict.threshold = tolerated;
        return verdict;
    };
    let excess = Difference::absolute(new, control.scaled(tolerated));
    let violated = enough && excess.lower(alpha, TUNED_FOR) > 0.0;
    let outcome = if violated { Outcome::Violated } else { Outcome::Passed };
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

/// Users counted in this stage against the planned sizes of the arms.
fn sample_ratio(
    guardrails: &Guardrails,
    comparison: &Comparison,
    measurements: &Measurements,
) -> Verdict {
    let (new, control) = (&measurements.current.new, &measurements.current.control);
    let planned = measurements.window.map_or(0.5, |window| new_share(window.percentage));
    let log_e_needed = -guardrails.level(comparison).ln();
    let users = new.users + control.users;
    if planned >= 1.0 || users == 0 {
        let mut verdict =
            Verdict::new(GuardrailName::SampleRatio, comparison.mode, Outcome::Unknown);
        verdict.threshold = 100.0 * planned;
        verdict.summary = "there are no two arms to compare".to_owned();
        return verdict;
    }
    let groups = new.members.pairs().zip(control.members.pairs());
    let dispersion = ratio::dispersion(groups.map(|((new, _), (control, _))| (new, control)));
    let counts = [new.users as f64 / dispersion, control.users as f64 / dispersion];
    let log_e = ratio::log_bayes_factor(&counts, &[planned, 1.0 - planned]);
    let outcome = if log_e >= log_e_needed { Outcome::Violated } else { Outcome::Passed };
    let mut verdict = Verdict::new(GuardrailName::SampleRatio, comparison.mode, outcome);
    verdict.new = Counts { affected: new.users, total: users };
    verdict.control = Counts { affected: control.users, total: users };
    verdict.estimate = Some(verdict.new.percent());
    verdict.threshold = 100.0 * planned;
    (verdict.log_e, verdict.log_e_needed) = (Some(log_e), Some(log_e_needed));
    let (actual, planned) = (verdict.new, 100.0 * planned);
    verdict.summary = match outcome {
        Outcome::Violated => format!(
            "the new arm has {actual} of the compared users instead of {planned:.1} %: users are lost \
             before they are counted, so trust no comparison and check how users are assigned"
        ),
        _ => format!("the new arm has {actual} of the compared users, planned: {planned:.1} %"),
    };
    verdict
}
