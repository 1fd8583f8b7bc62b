//! Where somebody belongs, by a flag as it stands. Pure.
//!
//! Eligibility comes before hashing and is the same for both sides; who is not eligible, or is named
//! by hand, belongs somewhere but is compared with nobody.

use serde::{Deserialize, Serialize};

use super::{
    cohort::{self, Bucket, Cohort},
    flag::Flag,
};

/// Whom a rollout is decided for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// The user, or a durable id of the client.
    pub id: String,
    /// What the user belongs to.
    pub groups: Vec<String>,
}

/// Where somebody belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// On the new side.
    pub new: bool,
    /// The part in comparisons.
    pub cohort: Cohort,
    /// The place.
    pub bucket: Bucket,
    /// Why.
    pub reason: Reason,
}

/// Why somebody belongs where they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// By their place.
    Split,
    /// They are named in `allow`.
    Allowed,
    /// They are named in `deny`.
    Denied,
    /// The environment or the groups are not those of the rollout.
    NotEligible,
    /// The rollout is off, pending or stopped.
    Off,
}

impl Flag {
    /// Where somebody belongs.
    pub fn assignment(&self, unit: &Unit, environment: &str) -> Assignment {
        let bucket = cohort::bucket(self.algorithm, self.component.as_str(), &self.salt, &unit.id);
        let named = |new, reason| Assignment { new, cohort: Cohort::Rest, bucket, reason };
        let percentage = self.effective();
        let conditions = &self.conditions;
        // Who is on the list stays on the old side even where everybody else has been moved.
        if conditions.deny.contains(&unit.id) {
            return named(false, Reason::Denied);
        }
        let off = percentage == cohort::Percentage::ZERO && !self.takes_by_name();
        if off {
            return named(false, Reason::Off);
        }
        let fits =
            |all: &[String], has: &dyn Fn(&String) -> bool| all.is_empty() || all.iter().any(has);
        if !fits(&conditions.environment, &|one| one == environment) {
            return named(false, Reason::NotEligible);
        }
        if conditions.allow.contains(&unit.id) {
            return named(true, Reason::Allowed);
        }
        if !fits(&conditions.user_groups, &|one| unit.groups.contains(one)) {
            return named(false, Reason::NotEligible);
        }
        let cohort = cohort::cohort(bucket, percentage);
        Assignment { new: cohort.is_new(), cohort, bucket, reason: Reason::Split }
    }

    /// Whether those named in `allow` belong on the new side: before the first step too, so that a
    /// team can try it on itself.
    fn takes_by_name(&self) -> bool {
        let stopped = self.course.stop.is_some() || self.has_ended();
        self.enabled && !stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{
        cohort::Percentage,
        flag::{Change, Conditions, Settings, TRANSPORT},
        schedule::Stop,
    };

    fn flag(share: f64, conditions: Conditions) -> Flag {
        let flag = Flag::new(TRANSPORT.parse().unwrap(), &Settings::default()).unwrap();
        let settings = Settings {
            rollout_percentage: Percentage::new(share).ok(),
            conditions: Some(conditions),
            ..Settings::default()
        };
        flag.after(&Change::Set(Box::new(settings)), "", 1).unwrap().0
    }

    fn unit(id: &str, groups: &[&str]) -> Unit {
        Unit { id: id.to_owned(), groups: groups.iter().map(|&group| group.to_owned()).collect() }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn whoever_is_not_eligible_stays_and_is_compared_with_nobody() {
        let conditions = Conditions {
            environment: words(&["production"]),
            user_groups: words(&["beta", "staff"]),
            allow: words(&["anna"]),
            deny: words(&["boss"]),
        };
        let flag = flag(100.0, conditions);
        let of = |id, groups: &[&str], place| {
            let Assignment { new, cohort, reason, .. } = flag.assignment(&unit(id, groups), place);
            (new, cohort, reason)
        };
        assert_eq!(of("u", &["staff"], "production"), (true, Cohort::New, Reason::Split));
        let not = (false, Cohort::Rest, Reason::NotEligible);
        assert_eq!(of("u", &["staff"], "staging"), not);
        assert_eq!(of("u", &["others"], "production"), not);
        assert_eq!(of("anna", &[], "production"), (true, Cohort::Rest, Reason::Allowed));
        assert_eq!(of("anna", &[], "staging"), not);
        let denied = (false, Cohort::Rest, Reason::Denied);
        assert_eq!(of("boss", &["staff"], "production"), denied);
    }

    #[test]
    fn those_who_are_named_come_before_the_first_step_and_go_with_a_stop() {
        let flag = flag(0.0, Conditions { allow: words(&["anna"]), ..Conditions::default() });
        assert!(flag.assignment(&unit("anna", &[]), "development").new);
        assert!(!flag.assignment(&unit("u", &[]), "development").new);
        let stopped = flag.after(&Change::Stop(Stop::DrainBack), "", 1).unwrap().0;
        assert!(!stopped.assignment(&unit("anna", &[]), "development").new);
    }

    #[test]
    fn raising_the_percentage_moves_nobody_out() {
        let mut inside = vec![false; 100_000];
        for share in [0.1, 1.0, 1.5, 5.0, 20.0, 49.9, 50.0, 50.1, 77.0, 100.0] {
            let flag = flag(share, Conditions::default());
            for (number, was) in inside.iter_mut().enumerate() {
                let now = flag.assignment(&unit(&format!("user-{number}"), &[]), "production").new;
                assert!(now || !*was, "user-{number} left at {share} %");
                *was = now;
            }
            let count = inside.iter().filter(|is| **is).count() as f64;
            assert!((count - share * 1000.0).abs() < 5.0 * (share * 1000.0).sqrt().max(5.0));
        }
        assert!(inside.iter().all(|is| *is));
    }
}
