//! Who somebody is by the token that they show.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{Config, Gateway, Tenants, TokenHash, valid_gateway_name};

/// The configured tokens. Clones share them: what replaces them holds for all from the next question on.
#[derive(Clone, Debug)]
pub struct Credentials {
    known: Arc<ArcSwap<Known>>,
}

/// Tokens by their hashes.
#[derive(Debug)]
struct Known {
    gateways: Vec<Gateway>,
    admin: Option<TokenHash>,
}

/// A Gateway that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub gateway: String,
    /// The tenants that it may name.
    pub tenants: Tenants,
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token, or one that nobody has.
    Unauthorized(String),
    /// A good token, but not for this.
    Forbidden(String),
    /// Something other than the token is wrong.
    Invalid(String),
}

impl Credentials {
    pub fn of(config: &Config) -> Self {
        Self { known: Arc::new(ArcSwap::from_pointee(Known::of(config))) }
    }

    /// Takes the tokens of this configuration instead.
    pub fn replace(&self, config: &Config) {
        self.known.store(Arc::new(Known::of(config)));
    }

    /// Whether Gateways need no token: none are configured.
    pub fn is_open(&self) -> bool {
        self.known.load().is_open()
    }

    /// Who a Gateway is. `claimed` is the id that it gives itself: needed in open mode, otherwise it must be that of its token.
    pub fn gateway(&self, token: Option<&str>, claimed: Option<&str>) -> Result<Identity, Denied> {
        let known = self.known.load();
        if known.is_open() {
            let Some(claimed) = claimed else {
                return Err(Denied::Invalid(
                    "gatewayId is missing; it is needed while no [[gateways]] are configured".into(),
                ));
            };
            if !valid_gateway_name(claimed) {
                let allowed = "allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -";
                return Err(Denied::Invalid(format!("gatewayId {claimed:?} is not allowed; {allowed}")));
            }
            return Ok(Identity { gateway: claimed.to_owned(), tenants: Tenants::All });
        }
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Denied::Unauthorized("a Gateway's token is needed".into()));
        };
        let hash = hash_token(token);
        // Every hash is compared, in constant time, so that the time taken tells nothing about any of them.
        let mut found = None;
        for gateway in &known.gateways {
            if bool::from(gateway.token_sha256.0.ct_eq(&hash.0)) {
                found = Some(gateway);
            }
        }
        let Some(gateway) = found else {
            return Err(Denied::Unauthorized("no Gateway has this token".into()));
        };
        match claimed {
            Some(claimed) if claimed != gateway.name => {
                Err(Denied::Forbidden(format!("the token is that of another Gateway than {claimed:?}")))
            }
            _ => Ok(Identity { gateway: gateway.name.clone(), tenants: gateway.tenants.clone() }),
        }
    }

    /// Whether somebody may write documents and read topology and metrics. Without any token configured everybody may.
    pub fn admin(&self, token: Option<&str>) -> Result<(), Denied> {
        let known = self.known.load();
        let Some(admin) = &known.admin else {
            return if known.is_open() {
                Ok(())
            } else {
                Err(Denied::Forbidden(
                    "this needs the admin token, and none is configured; set token_sha256 in [admin]".into(),
                ))
            };
        };
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Denied::Unauthorized("the admin token is needed".into()));
        };
        let hash = hash_token(token);
        if bool::from(admin.0.ct_eq(&hash.0)) {
            return Ok(());
        }
        let is_gateways = known.gateways.iter().any(|gateway| bool::from(gateway.token_sha256.0.ct_eq(&hash.0)));
        Err(if is_gateways {
            Denied::Forbidden("a Gateway's token doesn't cover this; the admin token is needed".into())
        } else {
            Denied::Unauthorized("this is not the admin token".into())
        })
    }

    /// The tenants that a Gateway may name, by its name, once it has been let in.
    pub fn tenants_of(&self, gateway: &str) -> Tenants {
        let known = self.known.load();
        if known.is_open() {
            return Tenants::All;
        }
        let found = known.gateways.iter().find(|known| known.name == gateway);
        found.map_or_else(|| Tenants::Only([].into()), |gateway| gateway.tenants.clone())
    }
}

impl Known {
    fn of(config: &Config) -> Self {
        Self { gateways: config.gateways.clone(), admin: config.admin.token_sha256 }
    }

    fn is_open(&self) -> bool {
        self.gateways.is_empty()
    }
}

/// SHA-256 of a token's bytes.
pub fn hash_token(token: &str) -> TokenHash {
    TokenHash(Sha256::digest(token.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(admin: bool) -> Credentials {
        let gateway =
            |name: &str, token: &str, tenants| Gateway { name: name.into(), token_sha256: hash_token(token), tenants };
        of(Known {
            gateways: vec![
                gateway("g1", "one", Tenants::All),
                gateway("g2", "two", Tenants::Only(["a".to_owned()].into())),
            ],
            admin: admin.then(|| hash_token("root")),
        })
    }

    fn of(known: Known) -> Credentials {
        Credentials { known: Arc::new(ArcSwap::from_pointee(known)) }
    }

    #[test]
    fn a_token_says_who_calls() {
        let credentials = credentials(false);
        assert_eq!(credentials.gateway(Some("two"), None).unwrap().gateway, "g2");
        assert_eq!(
            credentials.gateway(Some("two"), Some("g2")).unwrap().tenants,
            Tenants::Only(["a".to_owned()].into())
        );
        assert!(matches!(credentials.gateway(Some("two"), Some("g1")), Err(Denied::Forbidden(_))));
        for token in [None, Some(""), Some("three"), Some("one "), Some("ONE")] {
            assert!(matches!(credentials.gateway(token, Some("g1")), Err(Denied::Unauthorized(_))), "{token:?}");
        }
        assert_eq!(credentials.tenants_of("g1"), Tenants::All);
        assert!(!credentials.tenants_of("nobody").allow("a"));
    }

    #[test]
    fn open_mode_takes_the_claim() {
        let open = of(Known { gateways: Vec::new(), admin: None });
        assert_eq!(open.gateway(None, Some("me")).unwrap(), Identity { gateway: "me".into(), tenants: Tenants::All });
        assert!(matches!(open.gateway(Some("x"), None), Err(Denied::Invalid(_))));
        assert!(matches!(open.gateway(None, Some("a b")), Err(Denied::Invalid(_))));
        assert_eq!(open.admin(None), Ok(()));
    }

    #[test]
    fn the_admin_token_is_needed_once_anything_is_configured() {
        let with = credentials(true);
        assert_eq!(with.admin(Some("root")), Ok(()));
        assert!(matches!(with.admin(Some("one")), Err(Denied::Forbidden(_))));
        assert!(matches!(with.admin(Some("what")), Err(Denied::Unauthorized(_))));
        assert!(matches!(with.admin(None), Err(Denied::Unauthorized(_))));
        assert!(matches!(credentials(false).admin(Some("one")), Err(Denied::Forbidden(_))));
        let only_admin = of(Known { gateways: Vec::new(), admin: Some(hash_token("root")) });
        assert!(matches!(only_admin.admin(None), Err(Denied::Unauthorized(_))));
    }
}
