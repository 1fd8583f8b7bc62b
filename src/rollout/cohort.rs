//! Where a user stands in a rollout: a place that never changes, and the arm it is in at a
//! percentage.
//!
//! Pure. The new arm is `[0, P)`, so raising the percentage only ever adds users. The control arm
//! for statistics is `[50 %, 50 % + P)`: as large as the new one at every step, so that stages can
//! be pooled. Above 50 % it is all who are left. Who is eligible at all is decided before, and not
//! here.

mod hash;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

pub use super::percentage::{Percentage, PercentageError};
use hash::{fnv1a_utf16, murmur3};

/// How a user's place is computed. The other systems' rules let a rollout go on with the cohort
/// that such a system has already chosen.
///
/// The salt of a rollout is that system's own prefix, named at each rule; an empty salt stands for
/// the component's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashRule {
    /// murmur3 of `salt 0x1F unit`, by multiplying and shifting; exact to 0.001 %.
    #[default]
    CrossfadeV1,
    /// Gradual rollout of Unleash: `murmur3("groupId:unit") % 100 + 1`, in whole percents. The salt
    /// is the group id, by default the flag's name there.
    Unleash,
    /// `fractional` of flagd, whose new side is named first. The salt is the flag's key.
    Flagd,
    /// Hash version 2 of GrowthBook, in hundredths of a percent. The salt is the seed. Agrees with
    /// its half-open ranges; a rule with `coverage` takes one in ten thousand more.
    GrowthbookV2,
    /// Rollout of `LaunchDarkly`, whose new variation is named first. The salt is
    /// `flag key.flag salt`, or a seed.
    Launchdarkly,
}

/// A user's place from 0 to 99,999, in thousandths of a percent: below the percentage is the new
/// arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u32);

impl Bucket {
    /// How many places there are.
    pub const COUNT: u32 = 100_000;

    /// The place as a number below [`Bucket::COUNT`].
    pub fn number(self) -> u32 {
        self.0
    }
}

/// One of a thousand groups that users fall into independently of their arm. The spread between
/// groups says how sure a mean is when a user counts many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Jackknife(u16);

impl Jackknife {
    /// How many groups there are.
    pub const COUNT: u16 = 1_000;

    /// The group as a number below [`Jackknife::COUNT`].
    pub fn number(self) -> u16 {
        self.0
    }
}

/// The part a user has in a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cohort {
    /// Belongs on the new side.
    New,
    /// Belongs on the old side, and the new one is compared with it.
    Control,
    /// Belongs on the old side, and is not compared.
    Rest,
}

impl Cohort {
    /// Whether it belongs on the new side.
    pub fn is_new(self) -> bool {
        self == Self::New
    }
}

impl fmt::Display for Cohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Control => "control",
            Self::Rest => "rest",
        })
    }
}

/// The place of `unit` in the rollout of `component`. Where a rule has a coarser grain, its users
/// stand at the lower end of their grain, so that `bucket < P` is that system's own verdict at P.
pub fn bucket(rule: HashRule, component: &str, salt: &str, unit: &str) -> Bucket {
    let salt = if salt.is_empty() { component } else { salt };
    Bucket(match rule {
        HashRule::CrossfadeV1 => spread(murmur3(0, &joined(salt, "\x1f", unit)), Bucket::COUNT),
        HashRule::Unleash => murmur3(0, &joined(salt, ":", unit)) % 100 * 1_000,
        HashRule::Flagd => spread(murmur3(0, &joined(salt, "", unit)), Bucket::COUNT),
        HashRule::GrowthbookV2 => {
            let once = fnv1a_utf16(&format!("{salt}{unit}"));
            fnv1a_utf16(&once.to_string()) % 10_000 * 10
        }
        HashRule::Launchdarkly => first_above(launchdarkly(salt, unit)),
    })
}

/// The group of `unit`, by a second hash that knows nothing of the first; the same for every rule.
pub fn jackknife(component: &str, salt: &str, unit: &str) -> Jackknife {
    let salt = if salt.is_empty() { component } else { salt };
    let hash = murmur3(0, &joined(salt, "#jk\x1f", unit));
    Jackknife(spread(hash, u32::from(Jackknife::COUNT)) as u16)
}

/// 64 bits that stand for `unit` where only its identity matters.
pub(super) fn key(unit: &str) -> u64 {
    let half = |seed| u64::from(murmur3(seed, unit.as_bytes()));
    half(0x1f) << 32 | half(0x9747_b28c)
}

/// The part that a place has at a percentage.
pub fn cohort(bucket: Bucket, percentage: Percentage) -> Cohort {
    let new = percentage.thousandths();
    let half = Percentage::HALF.thousandths();
    let control = if new <= half { half..half + new } else { new..Bucket::COUNT };
    match bucket.0 {
        place if place < new => Cohort::New,
        place if control.contains(&place) => Cohort::Control,
        _ => Cohort::Rest,
    }
}

/// The share of compared users that belongs in the new arm, from 0 to 1: a half up to 50 %.
pub fn new_share(percentage: Percentage) -> f64 {
    percentage.share().max(0.5)
}

fn joined(salt: &str, between: &str, unit: &str) -> Vec<u8> {
    [salt.as_bytes(), between.as_bytes(), unit.as_bytes()].concat()
}

/// A hash spread over `0..parts` without a modulo's bias.
fn spread(hash: u32, parts: u32) -> u32 {
    ((u64::from(hash) * u64::from(parts)) >> 32) as u32
}

/// `LaunchDarkly`'s bucket from 0 to 1: the first 15 hex digits of a SHA-1, as a 32-bit float.
fn launchdarkly(salt: &str, unit: &str) -> f32 {
    let digest = Sha1::digest(joined(salt, ".", unit));
    let digits = digest.iter().take(8).fold(0, |all, byte| (all << 8) | u64::from(*byte));
    (digits >> 4) as f32 / 0x0FFF_FFFF_FFFF_FFFF_u64 as f32
}

/// The place at which a float stands, compared as its system compares: with a float of the weight.
fn first_above(value: f32) -> u32 {
    let above = |place: u32| value >= place as f32 / Bucket::COUNT as f32;
    let mut place = ((value * Bucket::COUNT as f32) as u32).min(Bucket::COUNT - 1);
    while place > 0 && !above(place) {
        place -= 1;
    }
    while place + 1 < Bucket::COUNT && above(place + 1) {
        place += 1;
    }
    place
}

#[cfg(test)]
mod tests;
