//! `streamer token new`: a token and what goes into the configuration for it.

use std::{fmt::Write, process::ExitCode};

use clap::{Args, Subcommand};
use rand::Rng;

use super::{Failed, print};
use crate::{
    config::{valid_gateway_name, valid_tenant_name},
    control::hash_token,
    tls::hexadecimal,
};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Prints a new token, and the lines of the configuration that let it in. The node keeps only its hash.
    New(NewArgs),
}

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// The Gateway's name; for --admin any name, for your own notes.
    name: String,
    /// A tenant that the Gateway may name; may be given more than once. Without it, all.
    #[arg(long = "tenant", value_name = "TENANT")]
    tenants: Vec<String>,
    /// A token for the administrator: documents, topology and metrics.
    #[arg(long, conflicts_with = "tenants")]
    admin: bool,
}

pub(super) fn run(command: &TokenCommand) -> Result<ExitCode, Failed> {
    let TokenCommand::New(args) = command;
    if !valid_gateway_name(&args.name) {
        return Err(Failed(format!("{:?} is not a name; allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -", args.name)));
    }
    if let Some(bad) = args.tenants.iter().find(|tenant| !valid_tenant_name(tenant)) {
        let allowed = "allowed: 1 to 256 bytes without control characters";
        return Err(Failed(format!("{bad:?} is not a tenant's name; {allowed}")));
    }
    // From the thread's generator, which is a cryptographic one, seeded by the system.
    let token = format!("streamer_{}", hexadecimal(&rand::rng().random::<[u8; 32]>()));
    let _ = print(format_args!("# token: {token}\n{}", lines(args, &token).trim_end()));
    eprintln!(
        "The token is shown this once: give it to {:?}. The lines below it go into the configuration.",
        args.name
    );
    Ok(ExitCode::SUCCESS)
}

fn lines(args: &NewArgs, token: &str) -> String {
    let hash = hexadecimal(&hash_token(token).0);
    if args.admin {
        return format!("[admin]\ntoken_sha256 = \"{hash}\"\n");
    }
    let mut text = format!("[[gateways]]\nname = \"{}\"\ntoken_sha256 = \"{hash}\"\n", args.name);
    let all = vec!["*".to_owned()];
    let tenants = if args.tenants.is_empty() { &all } else { &args.tenants };
    let quoted: Vec<_> = tenants.iter().map(|tenant| toml::Value::from(tenant.as_str()).to_string()).collect();
    // Writing to a text can't fail.
    let _ = writeln!(text, "tenants = [{}]", quoted.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, control::Credentials};

    fn args(tenants: &[&str], admin: bool) -> NewArgs {
        NewArgs { name: "gateway-1".into(), tenants: tenants.iter().map(|name| (*name).into()).collect(), admin }
    }

    #[test]
    fn the_lines_let_the_token_in() {
        let config = Config::from_parts(None, &lines(&args(&["a", "b \"c\""], false), "secret"), []).unwrap();
        let identity = Credentials::of(&config).gateway(Some("secret"), None).unwrap();
        assert_eq!(identity.gateway, "gateway-1");
        assert!(identity.tenants.allow("b \"c\"") && !identity.tenants.allow("c"));

        let config = Config::from_parts(None, &lines(&args(&[], false), "secret"), []).unwrap();
        assert!(Credentials::of(&config).tenants_of("gateway-1").allow("anything"));

        let config = Config::from_parts(None, &lines(&args(&[], true), "secret"), []).unwrap();
        assert_eq!(Credentials::of(&config).admin(Some("secret")), Ok(()));
    }
}
