//! Prints changes as they happen:
//!
//! ```text
//! cargo run -p streamer-gateway --example print_changes -- ADDRESS FINGERPRINT TENANT COLLECTION [EXPR]
//! ```
//!
//! `STREAMER_GATEWAY` is the Gateway's id (`print-changes` unless set), `STREAMER_TOKEN` its token (none for a node that runs
//! open on loopback). With `STREAMER_POSITIONS` naming a file, it goes on where it was when it is started again.

use std::{env, error::Error, fs, path::PathBuf};

use streamer_gateway::{AppEvent, Gateway, SavedPositions, Subscription};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut next =
        |name: &str| arguments.next().ok_or(format!("{name} is missing: ADDRESS FINGERPRINT TENANT COLLECTION [EXPR]"));
    let (address, fingerprint) = (next("ADDRESS")?, next("FINGERPRINT")?);
    let mut subscription = Subscription::new(next("TENANT")?, next("COLLECTION")?);
    if let Ok(expr) = next("EXPR") {
        subscription = subscription.expr(expr);
    }
    let file = env::var_os("STREAMER_POSITIONS").map(PathBuf::from);
    let saved = match &file {
        Some(file) if file.exists() => serde_json::from_slice(&fs::read(file)?)?,
        _ => SavedPositions::default(),
    };

    let mut gateway = Gateway::builder()
        .address(address)
        .fingerprint(fingerprint)
        .gateway(env::var("STREAMER_GATEWAY").unwrap_or_else(|_| "print-changes".into()))
        .token(env::var("STREAMER_TOKEN").unwrap_or_default())
        .resume_from(saved)
        .subscription(subscription)
        .connect()
        .await?;
    loop {
        let event = tokio::select! {
            event = gateway.next() => event,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(event) = event else { break };
        match &event.what {
            AppEvent::Change(change) => println!(
                "{:?} {} {} {}",
                change.transition(),
                change.collection(),
                change.document_id_text().unwrap_or_else(|| "?".into()),
                change.flat().map_or_else(String::new, |fields| fields.to_string()),
            ),
            AppEvent::Live { leaves, .. } => eprintln!("live, leave is promised: {leaves}"),
            AppEvent::Resync { reason, .. } => eprintln!("resync ({reason:?}): read the collection anew"),
            other => eprintln!("{other:?}"),
        }
        // Printing is all that this application does with a change, so it is done; one that stores changes would keep their
        // positions in the same transaction.
        event.ack();
        if let Some(file) = &file {
            fs::write(file, serde_json::to_vec(&gateway.positions())?)?;
        }
    }
    if let Some(error) = gateway.error() {
        return Err(error.into());
    }
    gateway.close().await;
    Ok(())
}
