pub mod admission;
pub mod credentials;
