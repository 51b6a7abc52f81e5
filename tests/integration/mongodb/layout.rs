//! How the two presets lay documents out on the server, and the change stream that a node and the test read of it.

use bson::{Binary, Bson, DateTime, Document, doc, oid::ObjectId, spec::BinarySubtype};
use mongodb::{Collection, Database};
use serde_json::Value;
use workload::{GeneratedSubscription, Preset, Profile, Write, oracle::stored_id};

use super::super::support::database::{TestServer, create};

/// Collections of which index keep no images. Under `syntrix`, the tenants of that index.
const WITHOUT_IMAGES: usize = 2;

/// Documents of one profile on one server.
pub(super) struct Layout {
    pub(super) profile: Profile,
    /// Under `syntrix`, where all documents are; under `plain`, one for each tenant.
    databases: Vec<Database>,
}

impl Layout {
    /// Makes every collection that the profile needs.
    pub(super) async fn create(server: &TestServer, profile: Profile) -> Self {
        let mut databases = Vec::new();
        match profile.preset {
            Preset::Syntrix => {
                let database = server.database("syntrix");
                create(&database, KEPT, true).await;
                create(&database, UNKEPT, false).await;
                databases.push(database);
            }
            Preset::Plain => {
                for tenant in 0..profile.tenants {
                    let database = server.database(&profile.tenant(tenant));
                    for collection in 0..profile.collections {
                        create(&database, &profile.collection(collection), collection != WITHOUT_IMAGES).await;
                    }
                    databases.push(database);
                }
            }
        }
        Self { profile, databases }
    }

    /// What the node and subscribers call the tenant.
    pub(super) fn tenant(&self, name: &str) -> String {
        match self.profile.preset {
            Preset::Syntrix => name.to_owned(),
            Preset::Plain => self.databases[self.tenant_index(name)].name().to_owned(),
        }
    }

    pub(super) fn home(&self, write: &Write) -> Collection<Document> {
        match self.profile.preset {
            Preset::Syntrix => {
                let kept = self.tenant_index(&write.tenant) != WITHOUT_IMAGES;
                self.databases[0].collection(if kept { KEPT } else { UNKEPT })
            }
            Preset::Plain => self.databases[self.tenant_index(&write.tenant)].collection(&write.collection),
        }
    }

    /// Every collection on the server.
    pub(super) fn homes(&self) -> Vec<Collection<Document>> {
        match self.profile.preset {
            Preset::Syntrix => [KEPT, UNKEPT].map(|name| self.databases[0].collection(name)).to_vec(),
            Preset::Plain => {
                let of = |database: &Database| {
                    let names = (0..self.profile.collections).map(|index| self.profile.collection(index));
                    names.map(|name| database.collection(&name)).collect::<Vec<_>>()
                };
                self.databases.iter().flat_map(of).collect()
            }
        }
    }

    /// Whether the documents of a subscription keep images.
    pub(super) fn keeps_images(&self, subscription: &GeneratedSubscription) -> bool {
        match self.profile.preset {
            Preset::Syntrix => subscription.key.tenant != self.profile.tenant(WITHOUT_IMAGES),
            Preset::Plain => subscription.collection != self.profile.collection(WITHOUT_IMAGES),
        }
    }

    /// The `_id` on the server.
    pub(super) fn stored_id(&self, write: &Write) -> Bson {
        match self.profile.preset {
            Preset::Syntrix => stored_id(&write.tenant, &write.collection, &write.document_id).into(),
            Preset::Plain => ordinary_id(&write.document_id),
        }
    }

    /// A generated subscription in the names of this layout.
    pub(super) fn place(&self, mut subscription: GeneratedSubscription) -> GeneratedSubscription {
        subscription.key.tenant = self.tenant(&subscription.key.tenant);
        if self.profile.preset == Preset::Plain && !subscription.filters.is_empty() {
            let mut filters: Value = serde_json::from_str(&subscription.filters).expect("the generator writes JSON");
            for filter in filters.as_array_mut().into_iter().flatten() {
                if filter["field"] == "_id" {
                    let id = ordinary_id(filter["value"].as_str().expect("generated ids are strings"));
                    filter["value"] = id.into_canonical_extjson();
                }
            }
            subscription.filters = filters.to_string();
        }
        subscription
    }

    /// The keys of `[[backends]]` that name what the node reads.
    pub(super) fn scope(&self) -> String {
        match self.profile.preset {
            Preset::Syntrix => format!("scope = {:?}", self.databases[0].name()),
            Preset::Plain => {
                let names: Vec<&str> = self.databases.iter().map(Database::name).collect();
                format!("namespaces = {names:?}")
            }
        }
    }

    /// The node's change stream for that scope: the database to ask, and the pipeline after the options. Events of one
    /// transaction are counted as they come, so what the node leaves out must be left out here too.
    pub(super) fn watched(&self) -> (Option<&Database>, Vec<Document>) {
        match self.profile.preset {
            Preset::Syntrix => (Some(&self.databases[0]), Vec::new()),
            Preset::Plain => {
                let names = self.databases.iter().map(|database| doc! { "ns.db": database.name() });
                let spanning = doc! { "operationType": { "$in": ["rename", "dropDatabase", "invalidate"] } };
                let any: Vec<Document> = names.chain([spanning]).collect();
                (None, vec![doc! { "$match": { "$or": any } }])
            }
        }
    }

    fn tenant_index(&self, name: &str) -> usize {
        let index = (0..self.profile.tenants).position(|index| self.profile.tenant(index) == name);
        index.expect("the writer names the profile's tenants")
    }
}

const KEPT: &str = "documents";
const UNKEPT: &str = "documents_without_images";

/// Ids of ordinary documents, in all the types that applications use for them.
fn ordinary_id(generated: &str) -> Bson {
    let number = generated.rsplit_once('-').and_then(|(_, number)| number.parse::<u8>().ok());
    let number = number.expect("generated ids end in a small number");
    let bytes = [number; 12];
    match number % 8 {
        0 => generated.into(),
        1 => Bson::Int32(i32::from(number)),
        2 => Bson::Int64((1 << 40) + i64::from(number)),
        3 => Bson::ObjectId(ObjectId::from_bytes(bytes)),
        4 => Bson::DateTime(DateTime::from_millis(1_700_000_000_000 + i64::from(number))),
        5 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }),
        6 => Bson::Double(f64::from(number) + 0.5),
        _ => Bson::Decimal128(format!("{number}.25").parse().expect("a decimal")),
    }
}
