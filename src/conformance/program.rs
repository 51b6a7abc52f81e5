//! The program of the Gateway under test.

use std::{path::Path, process::Stdio};

use futures::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command as Process},
};

use super::{
    ConformanceError,
    lines::{self, Command, Told},
    node::{GATEWAY, TOKEN},
};

/// Lines that may wait to be judged. A program that writes more waits, as at any pipe.
const LINES_MAX: usize = 1_024;

pub(super) struct Program {
    child: Child,
    stdin: ChildStdin,
    lines: flume::Receiver<Result<Told, String>>,
}

impl Program {
    /// Started, and told by its environment where the node is and which folder is its own.
    pub(super) fn start(
        command: &[String],
        (address, fingerprint): (&str, &str),
        folder: &Path,
    ) -> Result<Self, ConformanceError> {
        let (name, args) = command.split_first().ok_or(ConformanceError::NoProgram)?;
        let failed = |error| ConformanceError::Start { what: name.clone(), error };
        let mut child = Process::new(name)
            .args(args)
            .env("STREAMER_ADDRESS", address)
            .env("STREAMER_FINGERPRINT", fingerprint)
            .env("STREAMER_GATEWAY", GATEWAY)
            .env("STREAMER_TOKEN", TOKEN)
            .env("STREAMER_FOLDER", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take().expect("it was asked for");
        let stdout = child.stdout.take().expect("it was asked for");
        let (sender, lines) = flume::bounded(LINES_MAX);
        tokio::spawn(async move {
            let mut stdout = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = stdout.next_line().await {
                let Some(told) = lines::parse(&line) else {
                    eprintln!("gateway: {line}");
                    continue;
                };
                if sender.send_async(told).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    /// An error where it reads no more.
    pub(super) async fn tell(&mut self, command: &Command) -> Result<(), String> {
        let mut line = serde_json::to_vec(command).expect("commands become JSON");
        line.push(b'\n');
        let written = async {
            self.stdin.write_all(&line).await?;
            self.stdin.flush().await
        };
        written.await.map_err(|error| format!("the Gateway's program reads its standard input no more: {error}"))
    }

    /// The next thing that it says; `None` once it has ended.
    pub(super) async fn next(&self) -> Option<Result<Told, String>> {
        self.lines.recv_async().await.ok()
    }

    /// As the kernel ends it when memory is short. What it had said by then has been said.
    pub(super) async fn kill(mut self) -> Vec<Result<Told, String>> {
        // It may have ended by itself.
        let _ = self.child.kill().await;
        self.lines.into_stream().collect().await
    }
}
