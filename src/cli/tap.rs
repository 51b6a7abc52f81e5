//! `streamer tap`: prints matching changes of a running node as they happen.

use std::{process::ExitCode, time::Duration};

use bson::Bson;
use clap::Args;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use streamer_gateway::{AppEvent, Certainty, Change, Event, Gateway, GatewayBuilder, Subscription, SubscriptionKey};

use super::{Failed, ReaderGone, print};
use crate::control::names_loopback;

#[derive(Debug, Args)]
pub(super) struct TapArgs {
    #[arg(long)]
    tenant: String,
    /// A path such as rooms/room-1/messages.
    #[arg(long)]
    collection: String,
    /// As JSON ({"field": …, "op": …, "value": …}, or a list of these), or as field:op:value, such as age:>=:18. A value that is no JSON
    /// is a text. May be given more than once; all must hold.
    #[arg(long = "filter", value_name = "FILTER", value_parser = parse_filter)]
    filters: Vec<FilterList>,
    /// A CEL expression that must hold too, such as 'doc.age > 18'.
    #[arg(long)]
    expr: Option<String>,
    /// host:port of any shard. Without it, what the node tells over HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Where the node's HTTP API is, asked for addresses and fingerprint where these aren't given.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8083")]
    http: String,
    /// SHA-256 of the node's certificate, as the node prints it when it starts.
    #[arg(long)]
    fingerprint: Option<String>,
    /// The Gateway's name that the token belongs to. A running Gateway of this name would be thrown out: give `tap` one of its own.
    #[arg(long, requires = "token")]
    gateway: Option<String>,
    /// The token, where the node has Gateways configured.
    #[arg(long, env = "STREAMER_TOKEN", hide_env_values = true, requires = "gateway")]
    token: Option<String>,
    /// The administrator's token, for asking the node's HTTP API.
    #[arg(long, env = "STREAMER_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
    /// End after this many changes.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &TapArgs) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tap(args))
}

async fn tap(args: &TapArgs) -> Result<ExitCode, Failed> {
    let mut builder = Gateway::builder().agent(concat!("streamer-tap/", env!("CARGO_PKG_VERSION")));
    builder = match (&args.gateway, &args.token) {
        (Some(gateway), Some(token)) => builder.gateway(gateway).token(token),
        // A name of its own, since a second session of one name ends the first.
        _ => builder.gateway(format!("tap-{:016x}", rand::rng().random::<u64>())),
    };
    let mut gateway = reach(builder, args).await?.subscription(subscription(args)).connect().await?;
    let mut seen = 0;
    let ended = loop {
        let event = tokio::select! {
            event = gateway.next() => event,
            _ = tokio::signal::ctrl_c() => break Ok(()),
        };
        let Some(Event { what, .. }) = event else {
            break gateway.error().map_or(Ok(()), |error| Err(Failed::from(error)));
        };
        match show(&what, args.json) {
            Ok(Shown::Change) => seen += 1,
            Ok(Shown::Other) => {}
            Ok(Shown::End(message)) => break Err(Failed(message)),
            Err(ReaderGone) => break Ok(()),
        }
        if args.count.is_some_and(|count| seen >= count) {
            break Ok(());
        }
    };
    leave(&mut gateway, &subscription(args).key()).await;
    gateway.close().await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Ends the subscription at the node, where it would otherwise outlive this process and be waited for at a restart. A node that can't be
/// reached forgets it by itself once its time is over.
async fn leave(gateway: &mut Gateway, key: &SubscriptionKey) {
    const PATIENCE: Duration = Duration::from_secs(1);
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    gateway.unsubscribe(key);
    let gone = async {
        while gateway.status().subscriptions > 0 && gateway.error().is_none() {
            // What is still on its way must be taken for the end to come through.
            let _ = tokio::time::timeout(LOOK_EVERY, gateway.next()).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, gone).await;
}

fn subscription(args: &TapArgs) -> Subscription {
    let mut subscription = Subscription::new(&args.tenant, &args.collection);
    for Filter { field, op, value } in args.filters.iter().flat_map(|list| &list.0) {
        subscription = subscription.filter(field, op, value.clone());
    }
    match &args.expr {
        Some(expr) => subscription.expr(expr),
        None => subscription,
    }
}

/// What the node tells of itself.
#[derive(Debug, Deserialize)]
struct Told {
    fingerprint: String,
    shards: Vec<ToldShard>,
}

#[derive(Debug, Deserialize)]
struct ToldShard {
    address: String,
}

/// Gives the builder addresses and what to trust: as told on the command line, else as the node tells over HTTP.
async fn reach(mut builder: GatewayBuilder, args: &TapArgs) -> Result<GatewayBuilder, Failed> {
    if let (Some(address), Some(fingerprint)) = (&args.address, &args.fingerprint) {
        return Ok(builder.address(address).fingerprint(fingerprint));
    }
    if args.fingerprint.is_none() && !names_loopback(&args.http) {
        // Over the network, whoever answers could name a certificate of their own.
        return Err(Failed(format!(
            "--fingerprint is missing: it can be asked for over HTTP on this machine only, and {} is not; the node prints it when it starts",
            args.http
        )));
    }
    let told = ask(args).await?;
    builder = builder.fingerprint(args.fingerprint.as_ref().unwrap_or(&told.fingerprint));
    Ok(match &args.address {
        Some(address) => builder.address(address),
        None => told.shards.iter().fold(builder, |builder, shard| builder.address(&shard.address)),
    })
}

async fn ask(args: &TapArgs) -> Result<Told, Failed> {
    const OTHERWISE: &str = "give --address and --fingerprint instead, which the node prints when it starts";
    let url = format!("http://{}/v1/topology", args.http);
    // The proxy of the environment is not for the node beside us.
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut request = client.get(&url);
    if let Some(token) = &args.admin_token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.map_err(|error| {
        let Failed(why) = error.into();
        Failed(format!(
            "no node answers at {url} ({why}); start one with `streamer run`, name it with --http, or {OTHERWISE}"
        ))
    })?;
    match response.status().as_u16() {
        200 => Ok(response.json().await?),
        401 | 403 => {
            Err(Failed(format!("the node at {url} wants --admin-token (or STREAMER_ADMIN_TOKEN); or {OTHERWISE}")))
        }
        status => Err(Failed(format!("the node at {url} answered with {status}; {OTHERWISE}"))),
    }
}

enum Shown {
    Change,
    Other,
    /// Nothing more will come.
    End(String),
}

fn show(event: &AppEvent, as_json: bool) -> Result<Shown, ReaderGone> {
    match event {
        AppEvent::Change(change) => {
            match as_json {
                true => print(change_json(change))?,
                false => print(change_line(change))?,
            }
            return Ok(Shown::Change);
        }
        AppEvent::Live { leaves, .. } => {
            let leave = if *leaves { "promised" } else { "only where the source has the image before" };
            eprintln!("live; leave is {leave}");
        }
        AppEvent::CatchingUp { .. } => eprintln!("catching up: changes come from the source's history"),
        AppEvent::CaughtUp { .. } => eprintln!("caught up"),
        AppEvent::Gap { reason, position, .. } if as_json => {
            print(json!({"type": "gap", "reason": reason, "event": position.to_string()}))?;
        }
        AppEvent::Gap { reason, .. } => eprintln!("gap: {}; changes from here on may be missing", word(reason)),
        AppEvent::Resync { reason, .. } if as_json => print(json!({"type": "resync", "reason": reason}))?,
        AppEvent::Resync { reason, .. } => eprintln!("resync: {}; changes before this may be missing", word(reason)),
        AppEvent::Closed { reason, .. } => {
            return Ok(Shown::End(format!("the node has ended the subscription: {}", word(reason))));
        }
        AppEvent::Rejected { code, message, .. } => {
            return Ok(Shown::End(format!("the node refused the subscription: {}: {message}", word(code))));
        }
    }
    Ok(Shown::Other)
}

/// The name that a value has on the wire.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        other => format!("{other:?}"),
    }
}

fn document(change: &Change) -> Option<Value> {
    change.flat().map(|document| Bson::Document(document).into_relaxed_extjson())
}

fn change_json(change: &Change) -> Value {
    json!({
        "type": "change",
        "transition": change.transition(),
        "operation": change.operation(),
        "certainty": change.certainty(),
        "tenant": change.tenant(),
        "collection": change.collection(),
        "id": change.document_id().map(Bson::into_relaxed_extjson),
        "event": change.id().to_string(),
        "partition": change.partition(),
        "document": document(change),
    })
}

fn change_line(change: &Change) -> String {
    let certainty = match change.certainty() {
        Certainty::Matched => String::new(),
        other => format!(" ({})", word(&other)),
    };
    format!(
        "{:<6} {:<6} {}/{}{certainty}  {}",
        word(&change.transition()),
        word(&change.operation()),
        change.collection(),
        change.document_id_text().unwrap_or_else(|| "?".into()),
        document(change).map_or_else(String::new, |document| document.to_string())
    )
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    field: String,
    op: String,
    value: Value,
}

/// What one `--filter` says.
#[derive(Clone, Debug, PartialEq)]
struct FilterList(Vec<Filter>);

fn parse_filter(text: &str) -> Result<FilterList, String> {
    const ALLOWED: &str = "allowed: {\"field\": …, \"op\": …, \"value\": …}, a list of these, or field:op:value";
    let wrong = |error: serde_json::Error| format!("{error}; {ALLOWED}");
    match text.trim_start().chars().next() {
        Some('{') => serde_json::from_str(text).map(|filter| FilterList(vec![filter])).map_err(wrong),
        Some('[') => serde_json::from_str(text).map(FilterList).map_err(wrong),
        _ => {
            let mut parts = text.splitn(3, ':').map(str::to_owned);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(field), Some(op), Some(value)) if !field.is_empty() && !op.is_empty() => {
                    let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
                    Ok(FilterList(vec![Filter { field, op, value }]))
                }
                _ => Err(format!("this is no filter; {ALLOWED}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_in_both_forms() {
        let filter = |field: &str, op: &str, value: Value| Filter { field: field.into(), op: op.into(), value };
        for (text, expect) in [
            ("age:>=:18", vec![filter("age", ">=", json!(18))]),
            ("name:==:Ann", vec![filter("name", "==", json!("Ann"))]),
            ("name:==:\"18\"", vec![filter("name", "==", json!("18"))]),
            ("at:==:12:30", vec![filter("at", "==", json!("12:30"))]),
            ("tags:in:[\"a\", 1]", vec![filter("tags", "in", json!(["a", 1]))]),
            ("x:==:", vec![filter("x", "==", json!(""))]),
            ("{\"field\": \"a\", \"op\": \"eq\", \"value\": null}", vec![filter("a", "eq", Value::Null)]),
            (
                " [{\"field\": \"a\", \"op\": \"<\", \"value\": 1}, {\"field\": \"b\", \"op\": \">\", \"value\": 2}]",
                vec![filter("a", "<", json!(1)), filter("b", ">", json!(2))],
            ),
        ] {
            assert_eq!(parse_filter(text), Ok(FilterList(expect)), "{text}");
        }
        for text in ["", "age", "age:18", ":==:1", "a::1", "{", "{\"field\": \"a\"}", "[1]"] {
            assert!(parse_filter(text).unwrap_err().contains("allowed"), "{text}");
        }
    }
}
