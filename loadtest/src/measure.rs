//! What a process uses, as the kernel tells it.
//!
//! Memory is what is the process's own: neither the program's text nor the kernel's socket buffers
//! are in it.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{time::clock_getcpuclockid, unistd::Pid};
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

    /// The CPU time it has used, in user and kernel mode, by threads that ended as well.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        // To the nanosecond; /proc/PID/stat counts in hundredths of a second, too coarse for rounds
        // short enough to be compared.
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.0)?));
        let clock = clock.with_context(|| format!("process {} has no clock", self.0))?;
        Ok(clock.now().with_context(|| format!("process {} has ended", self.0))?.into())
    }
}

fn kilobytes(smaps: &str, name: &str) -> anyhow::Result<u64> {
    let value = smaps
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
        .with_context(|| format!("the kernel does not tell {name}"))?;
    Ok(value.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let this = Process(std::process::id());
        let memory = this.memory().unwrap();
        assert!(0 < memory.anonymous_kb && memory.anonymous_kb <= memory.resident_kb);
        let before = this.cpu().unwrap();
        assert!(this.memory().is_ok() && before < this.cpu().unwrap());
    }
}
