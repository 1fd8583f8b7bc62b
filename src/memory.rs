//! How much memory this process uses, and how much it may.

use std::fs;

/// The share of its memory that the process uses, 0 to 1: of its control group's limit where there is
/// one, of the machine's memory otherwise. 0 where the system does not tell.
pub fn used_share() -> f64 {
    match (used(), allowed()) {
        (Some(used), Some(allowed)) if 0 < allowed => used as f64 / allowed as f64,
        _ => 0.0,
    }
}

/// Bytes that are resident.
fn used() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmRSS:")
}

fn allowed() -> Option<u64> {
    let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:");
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_some_and_not_all() {
        let share = used_share();
        assert!(0.0 < share && share < 1.0, "{share}");
    }
}
