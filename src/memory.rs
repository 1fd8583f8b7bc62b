//! Memory usage of this process, relative to its limit. Reads `/proc` and the control group (Linux).

use std::fs;

/// The fraction of its memory limit that this process uses, 0 to 1. The limit is the smaller of the
/// control group's and the machine's memory. 0 where either number cannot be read.
pub fn used_fraction() -> f64 {
    match (resident_bytes(), limit_bytes()) {
        (Some(resident), Some(limit)) if 0 < limit => resident as f64 / limit as f64,
        _ => 0.0,
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibyte_field(&status, "VmRSS:")
}

fn limit_bytes() -> Option<u64> {
    let machine = kibibyte_field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:");
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// The value in bytes of a line such as `VmRSS:  1234 kB`.
fn kibibyte_field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_between_none_and_all_of_its_memory() {
        let fraction = used_fraction();
        assert!(0.0 < fraction && fraction < 1.0, "{fraction}");
    }
}
