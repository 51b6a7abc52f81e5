//! The web page in a browser: its figures move, and nothing goes wrong in it.
//!
//! Chromium is spoken to by its own protocol (DevTools) over a pipe. Where there is none, the test says so and passes, unless
//! `STREAMER_TEST_CHROMIUM` is set, which may also name the program.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use crate::support::{
    LOOK_EVERY, PATIENCE, Runtime, block_on,
    setup::{Running, Setup},
};

const VARIABLE: &str = "STREAMER_TEST_CHROMIUM";

/// The program, if there is one.
fn chromium() -> Option<String> {
    let named = env::var(VARIABLE).ok().filter(|name| !name.is_empty());
    let names = named.iter().map(String::as_str).filter(|name| *name != "1").chain(["chromium", "chromium-browser"]);
    let mut runs = names.filter(|name| {
        let version = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    let found = runs.next().map(String::from);
    assert!(found.is_some() || named.is_none(), "{VARIABLE} is set, and there is no chromium");
    found
}

/// A browser with one page. Ended when dropped.
struct Browser {
    child: Child,
    commands: ChildStdin,
    /// What it says, as it comes.
    messages: flume::Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    /// What the page, or the browser about the page, complained of.
    complaints: Vec<String>,
}

impl Browser {
    fn start(program: &str, profile: &Path) -> Self {
        // Commands are read from descriptor 3, and answers written to 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2";
        let mut child = Command::new("sh")
            .args(["-c", script, program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh is everywhere");
        let commands = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let (heard, messages) = flume::unbounded();
        thread::spawn(move || {
            for message in answers.split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).expect("chromium says JSON");
                if heard.send(message).is_err() {
                    return;
                }
            }
        });
        Self { child, commands, messages, session: None, last_id: 0, complaints: Vec::new() }
    }

    /// Opens a page. Everything that goes wrong in it is noted from its beginning.
    fn open(&mut self, url: &str) {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let session = self.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        self.session = session["sessionId"].as_str().map(String::from);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            self.call(domain, json!({}));
        }
        self.call("Page.navigate", json!({"url": url}));
    }

    /// What an expression is in the page.
    fn look(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("chromium takes commands");
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{method} got no answer"));
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    /// Hears what comes for a moment.
    fn listen(&mut self) {
        if let Ok(event) = self.messages.recv_timeout(LOOK_EVERY) {
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let is_complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                ["error", "warning", "assert"].iter().any(|kind| params["type"] == *kind)
            }
            // A browser asks for an icon by itself.
            Some("Log.entryAdded") => {
                let of_icon = params["entry"]["url"].as_str().is_some_and(|url| url.ends_with("/favicon.ico"));
                params["entry"]["level"] == "error" && !of_icon
            }
            _ => false,
        };
        if is_complaint {
            self.complaints.push(params.to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its own processes when its pipe closes; this is for one that hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The figure of this name on the page, as text.
fn figure(name: &str) -> String {
    format!(
        "(() => {{ const all = [...document.querySelectorAll('#figures div')]; \
         const found = all.find(div => div.querySelector('span').textContent === {name:?}); \
         return found ? found.querySelector('b').textContent : null; }})()"
    )
}

#[test]
fn the_figures_of_the_page_move() {
    let Some(program) = chromium() else {
        println!("skipped: there is no chromium; {VARIABLE} may name one");
        return;
    };
    block_on(async {
        let setup = Setup::new(Runtime::Tokio).on_shards(2);
        let node = Running::start(&setup).await;
        let profile = tempfile::tempdir().unwrap();
        let url = setup.url();
        let (stop, stopped) = flume::bounded::<()>(1);
        let watching = tokio::task::spawn_blocking(move || {
            let mut browser = Browser::start(&program, profile.path());
            browser.open(&format!("{url}/"));
            let mut see = |what: &str, expression: &str, is_so: &dyn Fn(&Value) -> bool| {
                let began = std::time::Instant::now();
                loop {
                    let value = browser.look(expression);
                    if is_so(&value) {
                        return;
                    }
                    assert!(began.elapsed() < PATIENCE, "{what}: {value}; complaints: {:?}", browser.complaints);
                    browser.listen();
                }
            };
            see("the node is ready", "document.getElementById('status')?.textContent", &|text| text == "ready");
            see("two shards", "document.querySelectorAll('#shards tr').length", &|rows| rows == 3);
            see("a backend that is read", "document.getElementById('backends')?.textContent", &|text| {
                text.as_str().is_some_and(|text| text.contains("reading"))
            });
            let is_number =
                |text: &Value| text.as_str().is_some_and(|text| !text.is_empty() && text != "0" && text != "–");
            see("events come", &figure("events a second"), &is_number);
            drop(stop);
            see("and stop coming", &figure("events a second"), &|text| text == "0");
            see("a chart is drawn", "history.length > 2", &|drawn| drawn == true);
            assert_eq!(browser.complaints, Vec::<String>::new(), "the page complains");
        });
        let api = setup.api();
        for number in 0.. {
            if stopped.is_disconnected() {
                break;
            }
            api.put("acme", "rooms", &(number % 50).to_string(), json!({"n": number})).await;
        }
        watching.await.unwrap();
        node.stop().await;
    });
}
