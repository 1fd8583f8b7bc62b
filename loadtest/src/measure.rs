//! What a process uses, as the kernel tells it.
//!
//! Memory is what is the process's own: neither the program's text nor the kernel's socket buffers
//! are in it. A server that splits into children is counted with them.

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
        let mut all = Memory::default();
        for Self(pid) in self.with_children() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text =
                fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
            let field = |name| kilobytes(&text, name);
            all.anonymous_kb += field("Anonymous:")?;
            all.private_kb += field("Private_Clean:")? + field("Private_Dirty:")?;
            all.resident_kb += field("Rss:")?;
        }
        Ok(all)
    }

    /// All that is resident, in KB: less exact than [`memory`](Self::memory), and cheap enough to
    /// be asked for while the process works.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_kb(self) -> anyhow::Result<u64> {
        let pages = |Self(pid): Self| -> anyhow::Result<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            Ok(text.split(' ').nth(1).context("the kernel tells no size")?.parse()?)
        };
        let page_kb = rustix::param::page_size() as u64 / 1024;
        let all: u64 = self.with_children().into_iter().map(pages).sum::<anyhow::Result<_>>()?;
        Ok(all * page_kb)
    }

    /// The CPU time it has used, in user and kernel mode, by threads that ended as well.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        self.with_children().into_iter().map(Self::own_cpu).sum()
    }

    fn own_cpu(self) -> anyhow::Result<Duration> {
        // To the nanosecond; /proc/PID/stat counts in hundredths of a second, too coarse for rounds
        // short enough to be compared.
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.0)?));
        let clock = clock.with_context(|| format!("process {} has no clock", self.0))?;
        Ok(clock.now().with_context(|| format!("process {} has ended", self.0))?.into())
    }

    fn with_children(self) -> Vec<Self> {
        let mut family = vec![self];
        let mut at = 0;
        while let Some(Self(pid)) = family.get(at).copied() {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Self));
            at += 1;
        }
        family
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
        assert!(0 < this.resident_kb().unwrap());
        let before = this.cpu().unwrap();
        assert!(this.memory().is_ok() && before < this.cpu().unwrap());
    }
}
