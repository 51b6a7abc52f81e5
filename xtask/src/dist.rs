//! `cargo xtask dist`: one archive with all that a host needs to run a node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{cargo, root, succeed, target};

/// Files of the archive beside the program, and what they are called in it.
const FILES: [(&str, &str); 6] = [
    ("packaging/install.sh", "install.sh"),
    ("packaging/uninstall.sh", "uninstall.sh"),
    ("src/config/default.toml", "streamer.default.toml"),
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE", "LICENSE"),
];
const FOLDERS: [&str; 2] = ["tuning", "docs"];

/// Builds the program and packs it.
///
/// # Errors
/// When building or packing fails, with what was said.
pub fn dist() -> Result<(), String> {
    let root = root();
    succeed(cargo(&root).args(["build", "--release", "--locked", "--package", "streamer"]), "building")?;
    let archive = pack(&root, &target(&root).join("release/streamer"), &target(&root).join("dist"))?;
    eprintln!("xtask: {}", archive.display());
    Ok(())
}

/// Packs this program with its files into an archive in `into`.
///
/// # Errors
/// When a file is missing or can't be written, or there is no `tar`.
pub fn pack(root: &Path, program: &Path, into: &Path) -> Result<PathBuf, String> {
    let name = format!("streamer-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let folder = into.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    copy(program, &folder.join("streamer"))?;
    for (from, to) in FILES {
        copy(&root.join(from), &folder.join(to))?;
    }
    for from in FOLDERS {
        copy_folder(&root.join(from), &folder.join(from))?;
    }
    let archive = into.join(format!("{name}.tar.gz"));
    succeed(
        Command::new("tar")
            .arg("--create")
            .arg("--gzip")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(into)
            .arg(&name),
        "packing",
    )?;
    Ok(archive)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    // Permissions go with it.
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    let entries = fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", from.display()))?;
        let (source, copied) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() { copy_folder(&source, &copied)? } else { copy(&source, &copied)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_what_is_installed_and_installs_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "#!/bin/sh\necho streamer of a test\n").unwrap();
        assert!(Command::new("chmod").arg("755").arg(&program).status().unwrap().success());
        let archive = pack(&root(), &program, &folder.path().join("dist")).unwrap();
        // Packing again finds what the first left, and is as good.
        assert_eq!(pack(&root(), &program, &folder.path().join("dist")).unwrap(), archive);

        let unpacked = folder.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        let tar = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).status().unwrap();
        assert!(tar.success());
        let name = archive.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap();
        let home = unpacked.join(name);
        let into = folder.path().join("host");
        let script = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(home.join(name));
            command.args(arguments).env("DESTDIR", &into).env("PREFIX", "/opt/streamer");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(script("install.sh", &[]).contains("installed streamer of a test to /opt/streamer/bin"));
        let read = |path: &str| fs::read_to_string(into.join(path));
        assert!(
            read("etc/systemd/system/streamer.service").unwrap().contains("ExecStart=/opt/streamer/bin/streamer run")
        );
        assert!(read("opt/streamer/share/streamer/prometheus/alerts.yml").is_ok());
        assert_eq!(read("etc/streamer/streamer.toml").unwrap(), read("etc/streamer/streamer.default.toml").unwrap());

        // A newer version leaves what was written into the configuration.
        fs::write(into.join("etc/streamer/streamer.toml"), "mine").unwrap();
        script("install.sh", &[]);
        assert_eq!(read("etc/streamer/streamer.toml").unwrap(), "mine");

        script("uninstall.sh", &[]);
        assert!(read("opt/streamer/bin/streamer").is_err() && read("etc/systemd/system/streamer.service").is_err());
        assert_eq!(read("etc/streamer/streamer.toml").unwrap(), "mine");
        script("uninstall.sh", &["--purge"]);
        assert!(!into.join("etc/streamer").exists());
    }
}
