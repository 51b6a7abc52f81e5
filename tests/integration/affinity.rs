//! Where threads run, read from the kernel, and which executor really drives them.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::support::{Runtime, SHARDS, setup::Setup};

/// Threads of a process by name, each with the cores that it is allowed.
fn threads(process: u32) -> BTreeMap<String, Vec<usize>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let path = task.unwrap().path();
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (name, cores) = (field("Name:").unwrap(), field("Cpus_allowed_list:").unwrap());
        threads.insert(name.to_owned(), core_list(cores));
    }
    threads
}

/// `0-1,4` as the kernel writes it.
fn core_list(text: &str) -> Vec<usize> {
    text.split(',')
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<usize>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

/// The kernel cuts names after 15 bytes.
fn of_thread<'t>(threads: &'t BTreeMap<String, Vec<usize>>, name: &str) -> &'t [usize] {
    let short = &name[..name.len().min(15)];
    threads.get(short).unwrap_or_else(|| panic!("there is no thread {short:?} among {:?}", threads.keys()))
}

fn cores(value: &Value) -> Vec<usize> {
    let cores = value.as_array().unwrap().iter();
    cores.map(|core| core.as_u64().unwrap() as usize).collect()
}

/// Rings that the process holds.
fn rings(process: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("[io_uring]")).count()
}

async fn check(setup: &Setup, shards: usize) {
    let process = setup.start_process().await;
    let topology = setup.api().topology().await;
    let threads = threads(process.id());
    println!("{threads:?}");
    let places = topology["shards"].as_array().unwrap();
    assert_eq!(places.len(), shards, "{topology}");
    for place in places {
        let name = format!("shard-{}", place["partition"]);
        assert_eq!(of_thread(&threads, &name), [place["core"].as_u64().unwrap() as usize], "{name}");
        assert_eq!(place["runtime"], setup.runtime.name(), "{place}");
    }
    assert_eq!(of_thread(&threads, "streamer-ingest"), cores(&topology["cores"]["ingest"]));
    assert_eq!(of_thread(&threads, "streamer-control"), cores(&topology["cores"]["control"]));
    let rings = rings(process.id());
    match setup.runtime {
        Runtime::Glommio => assert!(rings >= shards, "{rings} rings for {shards} shards"),
        Runtime::Tokio => assert_eq!(rings, 0),
    }
    assert!(process.log().contains(setup.runtime.name()), "the choice is told:\n{}", process.log());
    let status = process.terminate().await;
    assert!(status.success(), "{status}");
}

async fn chosen_cores(runtime: Runtime) {
    let allowed = streamer::affinity::Topology::read().unwrap().numbers();
    let (first, last) = (allowed[0], allowed[allowed.len() - 1]);
    let mut setup = Setup::new(runtime);
    // Backwards from what "auto" would do.
    setup.shards = format!("{last},{last},{first},{first}");
    setup.affinity = format!("ingest = {last}\ncontrol = \"{first},{last}\"");
    check(&setup, SHARDS).await;
}

async fn automatic_cores(runtime: Runtime) {
    let allowed = streamer::affinity::Topology::read().unwrap().numbers();
    let mut setup = Setup::new(runtime);
    setup.shards = "auto".into();
    let shards = match allowed.len() {
        1 | 2 => 1,
        cores => cores - 2,
    };
    check(&setup, shards).await;
}

crate::support::on_both_runtimes!(chosen_cores, automatic_cores, an_idle_node_sleeps);

/// Prints what it uses. Nothing is asserted but that it doesn't spin: the machine may be busy with other tests.
async fn an_idle_node_sleeps(runtime: Runtime) {
    const SECONDS: u64 = 2;
    let setup = Setup::new(runtime);
    let process = setup.start_process().await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let before = cpu_ticks(process.id());
    tokio::time::sleep(std::time::Duration::from_secs(SECONDS)).await;
    let used = cpu_ticks(process.id()) - before;
    // A hundred ticks a second, on Linux everywhere.
    println!("{}: {used} ticks in {SECONDS} s: {} % of a core", runtime.name(), used as f64 / SECONDS as f64);
    assert!(used < SECONDS * 100 / 2, "{used} ticks in {SECONDS} s: half a core or more, doing nothing");
}

/// User and system time of all threads.
fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name, in parentheses, may hold anything.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn core_lists_are_read() {
    assert_eq!(core_list("0-2,5"), [0, 1, 2, 5]);
    assert_eq!(core_list("3"), [3]);
}
