//! What a process uses, as the kernel tells it.
//!
//! Memory is what is the process's own: neither the program's text nor the kernel's socket buffers
//! are in it.

use std::{fs, time::Duration};

use anyhow::Context as _;
use serde::Serialize;

/// Somebody's process.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// A process's memory at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Heap, stacks and everything else that no file backs.
    pub anonymous_kb: u64,
    /// Pages that no other process shares, those of the program's own file included.
    pub private_kb: u64,
    /// All that is resident.
    pub resident_kb: u64,
}

impl Process {
    /// Its memory now.
    ///
    /// # Errors
    /// When it has ended, or is somebody else's.
    pub fn memory(self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
        let field = |name| kilobytes(&text, name);
        Ok(Memory {
            anonymous_kb: field("Anonymous:")?,
            private_kb: field("Private_Clean:")? + field("Private_Dirty:")?,
            resident_kb: field("Rss:")?,
        })
    }

    /// The CPU time it has used, in user and kernel mode.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
        let ticks = ticks(&text).with_context(|| format!("{path} is not what it should be"))?;
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_nanos(ticks * (1_000_000_000 / per_second)))
    }
}

fn kilobytes(smaps: &str, name: &str) -> anyhow::Result<u64> {
    let value = smaps
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
        .with_context(|| format!("the kernel does not tell {name}"))?;
    Ok(value.trim().parse()?)
}

/// `utime` and `stime`. The name before them is in parentheses and may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_confuse() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 31 0 0 20 0 1 0";
        assert_eq!(ticks(stat), Some(281));
    }

    #[test]
    fn this_process_uses_something() {
        let this = Process(std::process::id());
        let memory = this.memory().unwrap();
        assert!(0 < memory.anonymous_kb && memory.anonymous_kb <= memory.resident_kb);
        assert!(this.cpu().is_ok());
    }
}
