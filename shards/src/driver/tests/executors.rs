//! Threads, cores, runtimes, panics.

use std::{cell::Cell, net::UdpSocket, rc::Rc};

use super::{
    client::{Client, block_on},
    node::{Node, Options, RUNTIMES, allowed_core, start, start_core, thread_config},
    tiny::Tiny,
};
use crate::{
    Command, CommandId, CommandKind,
    driver::{
        ExecutorError, Preflight, RuntimeChoice, RuntimeKind, ShardThread, StartError,
        executor::{self, Executor},
        local::yield_now,
    },
};

/// Cores that the named thread of this process may run on, as the kernel writes them.
fn cores_of_thread(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned());
        if field("Name:").is_some_and(|named| named == name) {
            found.extend(field("Cpus_allowed_list:"));
        }
    }
    found
}

#[test]
fn a_shard_runs_on_its_core_under_its_name_on_both_runtimes() {
    for core in core_affinity::get_core_ids().unwrap() {
        for runtime in RUNTIMES {
            let mut options = Options::new(runtime);
            options.core = core.id;
            let (mut config, _others) = thread_config(options);
            config.name = format!("on-{}-{}", core.id, if runtime == RuntimeChoice::Tokio { "t" } else { "g" });
            let name = config.name.clone();
            let (_ring, handle) = ShardThread::spawn(config).unwrap();
            // Glommio has a second thread for blocking calls, under the same name and on the same core.
            // The kernel's listing may leave one out while other threads end.
            let cores = (0..1_000).map(|_| cores_of_thread(&name)).find(|cores| !cores.is_empty()).unwrap();
            assert!(cores.iter().all(|cores| *cores == core.id.to_string()), "{cores:?}");
            let expected = if runtime == RuntimeChoice::Tokio { RuntimeKind::Tokio } else { RuntimeKind::Glommio };
            assert_eq!(handle.runtime().kind, expected, "{}", handle.runtime());
            handle.stop();
            handle.join().unwrap();
        }
    }
}

/// Runs `body` on an executor of its own thread.
fn on_executor<F, T>(choice: RuntimeChoice, body: impl FnOnce(Rc<Executor>) -> F + Send + 'static) -> Result<T, String>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let core = allowed_core();
    std::thread::spawn(move || executor::make(choice, core, &Preflight::check(1)).unwrap().0.run(body)).join().unwrap()
}

#[test]
fn glommio_is_what_runs_where_glommio_is_chosen() {
    on_executor(RuntimeChoice::Glommio, |executor| async move {
        assert_eq!(executor.kind(), RuntimeKind::Glommio);
        // Panics on any other executor.
        assert!(glommio::executor().id() > 0);
        assert!(tokio::runtime::Handle::try_current().is_err());
    })
    .unwrap();
    on_executor(RuntimeChoice::Tokio, |executor| async move {
        assert_eq!(executor.kind(), RuntimeKind::Tokio);
        assert!(tokio::runtime::Handle::try_current().is_ok());
    })
    .unwrap();
}

#[test]
fn auto_takes_glommio_where_the_preflight_finds_it() {
    let found = Preflight::check(1).decide(RuntimeChoice::Auto).unwrap();
    let node = start(RuntimeChoice::Auto);
    assert_eq!(*node.handle.runtime(), found);
    node.stop();
}

#[test]
fn several_shards_share_a_core() {
    for runtime in RUNTIMES {
        let nodes: Vec<Node> = (0..4).map(|_| start(runtime)).collect();
        block_on(async {
            for node in &nodes {
                Client::connect(node).await;
            }
        });
        nodes.into_iter().for_each(Node::stop);
    }
}

#[test]
fn a_core_that_is_not_there_is_an_error_that_names_it() {
    for runtime in RUNTIMES {
        let mut options = Options::new(runtime);
        options.core = 1_000;
        let error = ShardThread::spawn(thread_config(options).0).unwrap_err();
        assert!(matches!(error, StartError::Executor(ExecutorError::Core { core: 1_000 })), "{error}");
        assert!(error.to_string().contains("core 1000"), "{error}");
    }
}

#[test]
fn the_port_is_free_as_soon_as_a_shard_has_ended() {
    for runtime in RUNTIMES {
        let mut socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5 {
            let address = socket.local_addr().unwrap();
            let mut options = Options::new(runtime);
            options.socket = socket;
            let node = start_core(options, Tiny::default);
            block_on(Client::welcomed(&node, "g"));
            node.stop();
            socket = UdpSocket::bind(address).expect("nobody holds the port any more");
        }
    }
}

#[test]
fn a_panic_of_the_shard_is_the_threads_result() {
    for runtime in RUNTIMES {
        let node = start_core(Options::new(runtime), Tiny::default);
        let gateway = "the panic's own words".to_owned();
        node.commands.send(Command { id: CommandId(1), gateway, what: CommandKind::RemoveAll }).unwrap();
        block_on(node.handle.ended());
        let failed = node.handle.join().unwrap_err();
        assert!(failed.message.contains("the panic's own words"), "{failed}");
        assert_eq!(failed.name, "shard-under-test");
    }
}

#[test]
fn a_panic_while_starting_is_the_error_of_starting() {
    for runtime in RUNTIMES {
        let (config, _others) = thread_config(Options::new(runtime));
        let identity = crate::driver::thread::Identity { partition: 0, body_bytes_max: 1 };
        let make = |_| -> Tiny { panic!("no shard today") };
        let error = crate::driver::thread::spawn_core(config, identity, make).unwrap_err();
        assert!(matches!(&error, StartError::Panicked(message) if message == "no shard today"), "{error}");
    }
}

#[test]
fn a_panic_of_a_task_is_heard_and_no_task_outlives_the_executor() {
    struct Held(Rc<Cell<bool>>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    for runtime in RUNTIMES {
        let error = on_executor(runtime, |executor| async move {
            let dropped = Rc::new(Cell::new(false));
            let held = Held(Rc::clone(&dropped));
            executor.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
            executor.spawn(async { panic!("{} of them", 3) });
            executor.failed().await;
            assert!(executor.has_failed() && !dropped.get());
            // Dropped at the end, which a test in here can't see: the next executor's thread would.
            executor.spawn(async move {
                while !dropped.get() {
                    yield_now().await;
                }
            });
        })
        .unwrap_err();
        assert_eq!(error, "3 of them");
    }
}

#[test]
fn time_passes_on_both_executors() {
    for runtime in RUNTIMES {
        on_executor(runtime, |executor| async move {
            let millisecond = std::time::Duration::from_millis(1);
            executor.sleep(millisecond).await;
            assert!(executor.timeout(millisecond, std::future::pending::<()>()).await.is_none());
            assert_eq!(executor.timeout(millisecond * 60_000, std::future::ready(5)).await, Some(5));
        })
        .unwrap();
    }
}
