//! The scripts and units that are handed out.

use std::{fs, path::Path, process::Command};

fn tuning(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name)
}

/// A made-up card with so many receive queues, and one interrupt of its own before theirs.
fn card(queues: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: String| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    };
    write("sys/class/net/eth7/device/msi_irqs/98".into());
    for queue in 0..queues {
        write(format!("sys/class/net/eth7/queues/rx-{queue}/rps_cpus"));
        write(format!("sys/class/net/eth7/device/msi_irqs/{}", 99 + queue));
    }
    root
}

/// Exit code, what it printed, and what it complained of.
fn irq(root: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new("sh").arg(tuning("irq.sh")).args(arguments).env("ROOT", root).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn each_port_gets_a_queue_and_each_queue_a_core() {
    let root = card(4);
    let (code, printed, complaint) = irq(root.path(), &["eth7", "7400", "2-3,6"]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    for (shard, core) in [2, 3, 6].into_iter().enumerate() {
        let rule = format!("ethtool -N eth7 flow-type udp4 dst-port {} action {shard}\n", 7400 + shard);
        let interrupt = format!("echo {core} > {}/proc/irq/{}/smp_affinity_list\n", root.path().display(), 99 + shard);
        assert!(printed.contains(&rule) && printed.contains(&interrupt), "{printed}");
    }
    assert_eq!(printed.matches("dst-port").count(), 3);
    assert!(!root.path().join("proc").exists(), "nothing is changed without --apply");
}

#[test]
fn what_can_not_be_steered_is_said() {
    let root = card(2);
    for (arguments, code, words) in [
        (&["eth7", "7400", "2-4"][..], 1, "2 receive queues, fewer than 3 shards"),
        (&["eth9", "7400", "2"], 1, "no card eth9"),
        (&["eth7", "port", "2"], 2, "port is no port"),
        (&["eth7", "7400", "two"], 2, "two names no cores"),
        (&["eth7"], 2, "irq.sh CARD PORT CORES"),
        (&["eth7", "7400", "2", "--now"], 2, "irq.sh CARD PORT CORES"),
    ] {
        let (found, printed, complaint) = irq(root.path(), arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {complaint}");
        assert!(complaint.contains(words), "{arguments:?}: {complaint}");
        assert_eq!(printed, "", "{arguments:?}");
    }
}

/// `systemd-analyze` isn't everywhere; where it is, the unit has to please it.
#[test]
fn the_unit_is_one_that_systemd_understands() {
    let text = fs::read_to_string(tuning("streamer.service")).unwrap();
    assert!(!text.contains("~@resources"), "threads must be allowed to pin themselves");
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("streamer.service");
    // It looks whether the program is there, which is not installed here.
    fs::write(&unit, text.replace("/usr/local/bin/streamer", "/bin/true")).unwrap();
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&unit).output() else {
        eprintln!("systemd-analyze is not here: the unit was only read");
        return;
    };
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = complaint.lines().filter(|line| line.contains("streamer.service")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}
