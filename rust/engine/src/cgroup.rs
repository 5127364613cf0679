//! Memory limits of the control groups (cgroup v1 and v2) that this process is in: what a container may have.

use std::path::{Path, PathBuf};

/// Limits above this mean that there is none: version 1 writes the largest number of pages.
const NO_LIMIT: u64 = 1 << 60;
/// Maximum depth of nested groups that is read.
const MAX_DEPTH: usize = 64;

/// Files of one version: limit, use, and the key of `memory.stat` for pages that the kernel gives back on demand.
struct Version {
    limits: &'static [&'static str],
    used: &'static str,
    reclaimable: &'static str,
}

const V2: Version =
    Version { limits: &["memory.max", "memory.high"], used: "memory.current", reclaimable: "inactive_file" };
const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// Memory of the groups in bytes: (the smallest limit, the least that is available under one). None: no group has a limit.
/// Paths are below `root`, which is `/` but in tests. Swap is not counted.
pub(crate) fn limits(root: &Path) -> Option<(u64, u64)> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mut least: Option<(u64, u64)> = None;
    for (version, group) in own.lines().filter_map(membership) {
        for (mount, top) in mounts_of(&mounts, version) {
            // In a container the mount may be the group itself, or the path may be that of the host.
            let inside = group.strip_prefix(&*top).unwrap_or(&group).trim_matches('/').to_string();
            let mount = root.join(mount.trim_start_matches('/'));
            for folder in upwards(&mount, &inside) {
                if let Some((limit, free)) = read(&folder, version) {
                    let (total, available) = least.unwrap_or((u64::MAX, u64::MAX));
                    least = Some((total.min(limit), available.min(free)));
                }
            }
        }
    }
    least
}

/// The version and the path of one line of /proc/self/cgroup, where it is about memory.
fn membership(line: &str) -> Option<(&'static Version, String)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let version = match controllers {
        "" => &V2,
        names if names.split(',').any(|name| name == "memory") => &V1,
        _ => return None,
    };
    Some((version, path.to_string()))
}

/// Mount points for a version, each with the group that is mounted there.
fn mounts_of(mounts: &str, version: &Version) -> Vec<(String, String)> {
    let first = version.used == V2.used;
    let of = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let fits = match kind.next()? {
            "cgroup2" => first,
            "cgroup" => {
                !first && kind.nth(1).is_some_and(|options| options.split(',').any(|o| o == "memory"))
            }
            _ => false,
        };
        let mut place = place.split(' ').skip(3);
        let (top, mount) = (place.next()?, place.next()?);
        fits.then(|| (mount.to_string(), top.trim_end_matches('/').to_string()))
    };
    let found = mounts.lines().filter_map(of).collect::<Vec<_>>();
    if !found.is_empty() {
        return found;
    }
    // Where /proc hides the mounts: the places that every system uses.
    let usual = if first { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    vec![(usual.into(), String::new())]
}

/// The folder of a group and those of the groups around it, up to the mount. A path with `..` reaches outside of it.
fn upwards(mount: &Path, inside: &str) -> Vec<PathBuf> {
    let parts = inside.split('/').filter(|part| !part.is_empty()).take(MAX_DEPTH).collect::<Vec<_>>();
    if parts.contains(&"..") {
        return vec![mount.to_path_buf()];
    }
    (0..=parts.len()).map(|n| mount.join(parts[..n].join("/"))).collect()
}

/// Limit and free bytes of one group; None without a limit.
fn read(folder: &Path, version: &Version) -> Option<(u64, u64)> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limits = version.limits.iter().filter_map(|name| number(name));
    let limit = limits.filter(|bytes| *bytes < NO_LIMIT).min()?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let given_back =
        stat.lines().find_map(|line| line.strip_prefix(version.reclaimable)?.trim().parse::<u64>().ok());
    let used = number(version.used).unwrap_or(0).saturating_sub(given_back.unwrap_or(0));
    Some((limit, limit.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const V1_MOUNT: &str = "31 23 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n";

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("dir");
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("write");
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_nested_groups_holds() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/memory.stat", ""),
            ("sys/fs/cgroup/pod/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/pod/memory.current", "3221225472\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 1073741824\nactive_file 5\n"),
            ("sys/fs/cgroup/pod/memory.swap.max", "1\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/pod/box/memory.current", "1073741824\n"),
        ]);
        assert_eq!(limits(root.path()), Some((4 * GIB, 2 * GIB)));
    }

    #[test]
    fn max_is_no_limit_and_high_is_one() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.high", "max\n"),
        ];
        assert_eq!(limits(tree(&files).path()), None);
        let mut high = files;
        high[3].1 = "1073741824\n";
        assert_eq!(limits(tree(&high).path()), Some((GIB, GIB)));
    }

    #[test]
    fn the_first_version_is_read_inside_a_container_and_outside() {
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
        let used = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
        let group = ("proc/self/cgroup", "12:cpu,cpuacct:/docker/a\n9:memory:/docker/a\n0::/docker/a\n");
        let stat = ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 536870912\n");
        let inside = "31 23 0:27 /docker/a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let root = tree(&[group, ("proc/self/mountinfo", inside), limit, used, stat]);
        assert_eq!(limits(root.path()), Some((2 * GIB, GIB + GIB / 2)));
        // The host's path, which the container does not see: its own top holds the limit.
        let root = tree(&[group, ("proc/self/mountinfo", V1_MOUNT), limit, used]);
        assert_eq!(limits(root.path()), Some((2 * GIB, GIB)));
        // The largest number of pages stands for no limit.
        let none = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limits(tree(&[group, ("proc/self/mountinfo", V1_MOUNT), none]).path()), None);
    }

    #[test]
    fn odd_files_are_no_limit() {
        assert_eq!(limits(tree(&[]).path()), None);
        for group in ["0::/../../outside\n", "0\n", "::\n", "0::/a/b/c\n"] {
            let root = tree(&[("proc/self/cgroup", group), ("sys/fs/cgroup/memory.max", "no number\n")]);
            assert_eq!(limits(root.path()), None, "{group}");
        }
        // Without mounts the usual place is read.
        let root = tree(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "4096\n")]);
        assert_eq!(limits(root.path()), Some((4096, 4096)));
    }
}
