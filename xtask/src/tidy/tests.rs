use super::*;

type Check = fn(&Repository, &mut Vec<Finding>);

/// What one check says about these files.
fn found(check: Check, files: &[(&str, &str)]) -> Vec<String> {
    let mut findings = Vec::new();
    check(&Repository::of(files.iter().copied()), &mut findings);
    findings.iter().map(ToString::to_string).collect()
}

/// The page with every row, each saying `cell`.
fn failures_page(cell: impl Fn(&str) -> String) -> String {
    let ids = FAILURE_ROWS.iter().flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")));
    ids.map(|id| format!("| {id} | what | {} |\n", cell(&id))).collect()
}

#[test]
fn a_long_file_is_found() {
    let (long, short) = ("\n".repeat(LINES_MAX + 1), "\n".repeat(LINES_MAX));
    assert_eq!(
        found(lengths, &[("a.rs", &long), ("b.rs", &short), ("c.md", &long)]),
        ["a.rs: 601 lines where 600 are allowed"]
    );
}

#[test]
fn what_was_left_behind_is_found() {
    for left in LEFTOVERS {
        assert_eq!(
            found(leftovers, &[("a.rs", &format!("fine\n// {left}"))]),
            [format!("a.rs:2: {left} is left over")]
        );
    }
    assert_eq!(found(leftovers, &[("data.json", LEFTOVERS[0])]), [""; 0]);
    let ignored = format!("#[{}]\nfn test() {{}}", "ignore = \"slow\"");
    assert_eq!(found(leftovers, &[("a.rs", &ignored)]), ["a.rs:1: an ignored test never runs"]);
}

#[test]
fn folders_that_a_clone_lacks_are_found() {
    let name = concat!("shar", "ed/");
    for bad in
        [format!("see ../{name}design.md"), format!("/work/{name}x"), format!("`{name}style.md`"), format!("{name}x")]
    {
        assert!(names_shared(&bad), "{bad}");
    }
    for good in [format!("src/{name}ring.rs"), format!("un{name}"), "shared by all".to_owned()] {
        assert!(!names_shared(&good), "{good}");
    }
}

#[test]
fn links_lead_to_files_and_headings() {
    let page = "# One page\n[a](b.md) [b](../README.md#what-it-is) [c](https://example.org/x) [d](#one-page)\n```\n[no](link)\n```\n";
    let readme = "## What it is\n";
    assert_eq!(found(links, &[("docs/a.md", page), ("docs/b.md", ""), ("README.md", readme)]), [""; 0]);
    assert_eq!(
        found(links, &[("docs/a.md", page), ("README.md", "")]),
        [
            "docs/a.md:2: the link to b.md leads nowhere: there is no docs/b.md",
            "docs/a.md:2: the link to ../README.md#what-it-is leads nowhere: no such heading",
        ]
    );
}

#[test]
fn paths_in_the_architecture_page_are_there() {
    let page =
        "`src/node.rs`, `src/source/{a,b}.rs`, `src/source/`, `GET /health`, `src/<name>.rs`, `n/a`, `wire::Position`";
    let files = [("docs/architecture.md", page), ("src/node.rs", ""), ("src/source/a.rs", "")];
    assert_eq!(found(named_paths, &files), ["docs/architecture.md:1: `src/source/b.rs` is not there"]);
    assert_eq!(found(named_paths, &[]), ["docs/architecture.md: the page is missing"]);
}

#[test]
fn rows_of_failures_are_there_and_their_tests_too() {
    let sources = [
        ("tests/restart.rs", "fn one_restart() {}"),
        ("shards/src/shard/tests.rs", "async fn a_gap_is_seen() {}"),
        ("src/a.rs", "mod inner {\n fn generic<T>() {} }"),
    ];
    let check = |cell: &dyn Fn(&str) -> String| {
        let page = failures_page(cell);
        let mut files = sources.to_vec();
        files.push(("docs/failures.md", &page));
        found(failures, &files)
    };
    for good in [
        "`restart::one_restart`",
        "`tests/restart.rs::one_restart` and `shards::shard::tests::a_gap_is_seen`",
        "`shards::shard::a_gap_is_seen`",
        "`inner::generic`",
        "No test: the driver does it",
    ] {
        assert_eq!(check(&|_| good.to_owned()), [""; 0], "{good}");
    }
    let with = |odd: &'static str| move |id: &str| if id == "S2" { odd.into() } else { "No test: x".to_owned() };
    assert_eq!(check(&with("nothing")), ["docs/failures.md:2: row S2 names no test and doesn't say \"No test: …\""]);
    for bad in ["restart::one", "other.rs::one_restart", "elsewhere::one_restart"] {
        let line: &'static str = Box::leak(format!("`{bad}`").into_boxed_str());
        assert_eq!(check(&with(line)), [format!("docs/failures.md:2: row S2 names `{bad}`, which is no test")]);
    }

    let page = failures_page(|_| "No test: x".into()).replace("| G13 |", "| G14 |");
    assert_eq!(found(failures, &[("docs/failures.md", &page)]), ["docs/failures.md: row G13 is missing"]);
    assert_eq!(found(failures, &[]), ["docs/failures.md: the page is missing"]);
}

#[test]
fn a_tree_is_read_without_what_is_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["src/a.rs", "target/b.rs", ".git/c", ".ci/run"] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
    }
    fs::write(folder.path().join("picture.png"), [0xff, 0xfe]).unwrap();
    let repository = Repository::read(folder.path()).unwrap();
    assert_eq!(repository.files().collect::<Vec<_>>(), [(".ci/run", "text"), ("src/a.rs", "text")]);
    let paths: Vec<&str> = repository.paths.iter().map(String::as_str).collect();
    assert_eq!(paths, [".ci", ".ci/run", "picture.png", "src", "src/a.rs"]);
}
