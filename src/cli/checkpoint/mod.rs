//! `streamer checkpoint`: what is kept, changing it and forgetting it, each with what that means for what is delivered.

mod at;
mod set;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    io::{BufRead, IsTerminal, Write as _},
    process::ExitCode,
    time::SystemTime,
};

use bson::DateTime;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::at::{At, Place, date, rfc3339, span};
use super::{ConfigFile, Failed, print};
use crate::{
    checkpoint::{self, About, Checkpoint, CheckpointError, CheckpointStore},
    config::{BackendKind, Config, Missing},
    node::{DataFolder, open_source},
};

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    /// Prints the place that each backend would be read on from.
    Show(ShowArgs),
    /// Chooses the places: the next start reads on from there. The node must not be running.
    Set(SetArgs),
    /// Forgets the places: the next start reads from now. The node must not be running.
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// 2026-03-01T12:00:00Z, now-15m, a cluster time as SECONDS.INCREMENT, or the offset of an embedded store.
    #[arg(long, value_name = "TIME")]
    at: At,
    /// Only this backend; without it, all.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    #[command(flatten)]
    yes: Yes,
}

#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    yes: Yes,
}

#[derive(Debug, Args)]
struct Yes {
    /// Doesn't ask.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(command: &CheckpointCommand) -> Result<ExitCode, Failed> {
    match command {
        CheckpointCommand::Show(args) => show(&args.config.load()?, args.json),
        CheckpointCommand::Set(args) => {
            set(&args.config.load()?, args.at, args.backend.as_deref(), || args.yes.is_given())
        }
        CheckpointCommand::Reset(args) => reset(&args.config.load()?, || args.yes.is_given()),
    }
}

impl Yes {
    fn is_given(&self) -> Result<(), Failed> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failed("nothing was changed: allowed with --yes, or on a terminal that can be asked".into()));
        }
        eprint!("Go on? [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failed("nothing was changed".into())),
        }
    }
}

fn show(config: &Config, json: bool) -> Result<ExitCode, Failed> {
    let mut store = checkpoint::open(config)?;
    let kept = store.load()?;
    let (about, now_ms) = (store.about(), DateTime::now().timestamp_millis());
    let text = if json {
        serde_json::to_string_pretty(&as_json(config, kept.as_ref(), &about, now_ms)?)?
    } else {
        describe(config, kept.as_ref(), &about, now_ms)
    };
    let _ = print(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn set(
    config: &Config,
    at: At,
    backend: Option<&str>,
    confirmed: impl FnOnce() -> Result<(), Failed>,
) -> Result<ExitCode, Failed> {
    let chosen = set::chosen(config, backend, at, DateTime::now().timestamp_millis()).map_err(Failed)?;
    let _lock = DataFolder::lock(&config.node.data_dir)?;
    let mut store = checkpoint::open(config)?;
    refuse_if_owned(&mut *store)?;
    let kept = store.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut changes = Vec::with_capacity(chosen.len());
    for (backend, time) in chosen {
        let named = |why: String| Failed(format!("backend {:?}: {why}", backend.name));
        let old = kept.as_ref().and_then(|kept| kept.backends.iter().find(|old| old.name == backend.name));
        let (source, _store) = open_source(backend)?;
        let place = Place { kind: Some(&backend.kind), time, k: 0 };
        let asked = runtime.block_on(set::ask(&source, time)).map_err(|why| named(format!("{place} {why}")))?;
        changes.push(set::change(backend, time, old, &asked).map_err(named)?);
    }
    let _ = print(changes.iter().map(|change| change.told.as_str()).collect::<String>().trim_end());
    confirmed()?;
    store.claim()?;
    store.save(&set::merged(kept, changes.into_iter().map(|change| change.backend).collect()))?;
    store.release()?;
    let _ = print("done");
    Ok(ExitCode::SUCCESS)
}

fn reset(config: &Config, confirmed: impl FnOnce() -> Result<(), Failed>) -> Result<ExitCode, Failed> {
    let _lock = DataFolder::lock(&config.node.data_dir)?;
    let mut store = checkpoint::open(config)?;
    // One that can't be read is what this command is for; nobody writes it either.
    let unreadable =
        |error: &CheckpointError| matches!(error, CheckpointError::BothBad { .. } | CheckpointError::Rotten { .. });
    let kept = match refuse_if_owned(&mut *store).and_then(|()| Ok(store.load()?)) {
        Ok(kept) => describe(config, kept.as_ref(), &store.about(), DateTime::now().timestamp_millis()),
        Err(refused) => match store.load() {
            Err(error) if unreadable(&error) => format!("it can't be read: {error}\n"),
            _ => return Err(refused),
        },
    };
    let next = match config.checkpoint.on_missing {
        Missing::FromNow => "The next start reads from now.",
        Missing::Fail => "The next start halts every backend, since checkpoint.on_missing is \"fail\".",
    };
    let _ = print(format_args!(
        "To be forgotten:\n{kept}{next} What has happened since these places is not delivered; subscriptions whose Gateways present \
         older positions are told Resync."
    ));
    confirmed()?;
    store.reset()?;
    store.release()?;
    let _ = print("done");
    Ok(ExitCode::SUCCESS)
}

fn refuse_if_owned(store: &mut dyn CheckpointStore) -> Result<(), Failed> {
    if store.is_shared() {
        eprintln!("looking whether a node is using {} …", store.about().place);
    }
    match store.owned_elsewhere()? {
        Some(owner) => {
            Err(Failed(format!("the checkpoint {} is in use by {owner}; stop that node first", store.about().place)))
        }
        None => Ok(()),
    }
}

fn kind_of<'c>(config: &'c Config, name: &str) -> Option<&'c BackendKind> {
    config.backends.iter().find(|backend| backend.name == name).map(|backend| &backend.kind)
}

fn written_ms(about: &About) -> Option<i64> {
    let since = about.written_at?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

fn describe(config: &Config, kept: Option<&Checkpoint>, about: &About, now_ms: i64) -> String {
    let ago = |ms: i64| span(u64::try_from(now_ms - ms).unwrap_or(0));
    let mut text = format!("{} {}", about.store, about.place);
    // Writing to a text can't fail.
    let mut line = |line: String| _ = writeln!(text, "{line}");
    line(match written_ms(about) {
        Some(ms) => format!(", written {} ago ({})", ago(ms), rfc3339(ms)),
        None => String::new(),
    });
    if let Some(owner) = &about.owner {
        line(format!("owner: {owner}"));
    }
    let Some(kept) = kept else {
        line("no checkpoint: the next start reads from now".into());
        return text;
    };
    for backend in &kept.backends {
        let kind = kind_of(config, &backend.name);
        let place = Place { kind, time: backend.time, k: backend.k };
        let age = match kind {
            Some(BackendKind::Mongodb(_)) => format!(", {} ago", ago((backend.time >> 32) as i64 * 1_000)),
            Some(BackendKind::Embedded(_)) => String::new(),
            None => " (not in the configuration)".to_owned(),
        };
        let token = if backend.token.is_some() { "with a resume token" } else { "by its time alone" };
        line(format!("backend {:?}: {place}{age}; {token}", backend.name));
        line(format!("  of {}; lineage {:016x}", backend.source, backend.lineage));
    }
    line(match &kept.gateways[..] {
        [] => "Gateways waited for at the next start: none".to_owned(),
        names => format!("Gateways waited for at the next start ({}): {}", names.len(), names.join(", ")),
    });
    text
}

fn as_json(config: &Config, kept: Option<&Checkpoint>, about: &About, now_ms: i64) -> Result<Value, serde_json::Error> {
    let mut checkpoint = serde_json::to_value(kept)?;
    for backend in checkpoint.get_mut("backends").and_then(Value::as_array_mut).into_iter().flatten() {
        let time = backend["time"].as_u64().unwrap_or(0);
        let kind = backend["name"].as_str().and_then(|name| kind_of(config, name));
        backend["kind"] = match kind {
            Some(BackendKind::Mongodb(_)) => json!("mongodb"),
            Some(BackendKind::Embedded(_)) => json!("embedded"),
            None => Value::Null,
        };
        if let Some(BackendKind::Mongodb(_)) = kind {
            backend["date"] = json!(date(time));
            backend["cluster_time"] = json!(format!("{}.{}", time >> 32, time as u32));
        }
    }
    let written = written_ms(about);
    Ok(json!({
        "store": about.store,
        "place": about.place,
        "owner": about.owner,
        "written_at": written.map(rfc3339),
        "age_ms": written.map(|ms| u64::try_from(now_ms - ms).unwrap_or(0)),
        "checkpoint": checkpoint,
    }))
}
