//! A share of users, in thousandths of a percent, as people write it: `1`, `2.5`, `0.125`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A share from 0 to 100 %, exact to a thousandth of a percent. In JSON it is a number.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percentage(u32);

/// Why something is no [`Percentage`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0} is no percentage: write a number from 0 to 100 with at most three decimals")]
pub struct PercentageError(String);

impl Percentage {
    /// Nobody.
    pub const ZERO: Self = Self(0);
    /// As many as can have a control arm of the same size.
    pub const HALF: Self = Self(50_000);
    /// Everybody.
    pub const ALL: Self = Self(100_000);

    /// That many percent: `2.5` is 2.5 %.
    pub fn new(percent: f64) -> Result<Self, PercentageError> {
        let thousandths = (percent * 1_000.0).round();
        let near = (thousandths - percent * 1_000.0).abs() < 1e-6;
        if near && (0.0..=100_000.0).contains(&thousandths) {
            Ok(Self(thousandths as u32))
        } else {
            Err(PercentageError(percent.to_string()))
        }
    }

    /// That many thousandths of a percent, at most 100,000.
    pub fn of_thousandths(thousandths: u32) -> Option<Self> {
        (thousandths <= Self::ALL.0).then_some(Self(thousandths))
    }

    /// In thousandths of a percent: 0 to 100,000.
    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// As a number from 0 to 100.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }

    /// As a number from 0 to 1.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100_000.0
    }
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

impl fmt::Debug for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// From a shell or a form: `5`, `2.5`, `2.5%`.
impl FromStr for Percentage {
    type Err = PercentageError;

    fn from_str(raw: &str) -> Result<Self, PercentageError> {
        let number = raw.trim().trim_end_matches('%').trim_end();
        let percent = number.parse().map_err(|_| PercentageError(format!("{raw:?}")))?;
        Self::new(percent)
    }
}

impl Serialize for Percentage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1_000) {
            serializer.serialize_u32(self.0 / 1_000)
        } else {
            serializer.serialize_f64(self.percent())
        }
    }
}

impl<'de> Deserialize<'de> for Percentage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_goes_through_json_as_it_was_written() {
        for (text, thousandths) in [("0", 0), ("1", 1_000), ("2.5", 2_500), ("0.001", 1)] {
            let read: Percentage = serde_json::from_str(text).unwrap();
            assert_eq!(read.thousandths(), thousandths);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for thousandths in 0..=100_000 {
            let one = Percentage::of_thousandths(thousandths).unwrap();
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Percentage>(&text).unwrap(), one);
            assert_eq!(Percentage::new(one.percent()), Ok(one));
        }
        assert_eq!(Percentage::of_thousandths(100_001), None);
    }

    #[test]
    fn what_is_none_is_told_so() {
        for text in ["-1", "100.001", "2.0005", "1e9"] {
            let error = serde_json::from_str::<Percentage>(text).unwrap_err().to_string();
            assert!(error.contains("from 0 to 100"), "{text}: {error}");
        }
        assert!(Percentage::new(f64::NAN).is_err());
        assert_eq!("2.5%".parse(), Percentage::new(2.5));
        assert_eq!(" 100 % ".parse(), Ok(Percentage::ALL));
        let error = "many".parse::<Percentage>().unwrap_err().to_string();
        assert!(error.starts_with("\"many\" is no percentage"), "{error}");
        assert_eq!(Percentage::new(12.5).unwrap().to_string(), "12.5 %");
    }
}
