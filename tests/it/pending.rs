//! The next step runs while a large layer is hashed, where no record could match it.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::builder::Builder;
use super::lifecycle::{assert_no_scratch, turns};
use super::sandbox::Ended;

/// Takes much longer to hash than to make.
const LARGE: &str = "RUN truncate -s 64M /large; touch -d @7 /large\n";

/// What a build told.
fn rawjson(builder: &Builder, args: &[&str]) -> String {
    builder.built(&[&["rawjson"], args].concat()).stderr
}

/// Whether a RUN began before the one before it had ended.
fn overlaps(stderr: &str) -> bool {
    turns(stderr).windows(2).any(|pair| pair[0].starts_with('+') && pair[1].starts_with('+'))
}

#[test]
fn the_next_step_runs_while_a_layer_is_hashed_and_the_image_is_the_same() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.write("file", "of the context");
        sandbox.write(
            "Dockerfile",
            &format!(
                "FROM busybox\n{LARGE}ENV A=1\n\
                 RUN rm /large; ls / > /names; touch -d @8 /names\n\
                 WORKDIR /work\n\
                 COPY file .\n\
                 RUN cat file /names > both; touch -d @9 both .\n\
                 RUN rm both; truncate -s 30M last; touch -d @9 last .\n"
            ),
        );
        let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=100"];
        let told = rawjson(builder, &epoch);
        assert!(overlaps(&told), "{told}");
        let image = || fs::read(sandbox.path("image.tar")).unwrap();
        let meanwhile = image();

        // What is explained runs one after the other.
        assert_eq!(builder.wythe(&["cache", "prune", "--all"]).code, Some(0));
        let told = rawjson(builder, &[&epoch[..], &["--explain"]].concat());
        assert!(!overlaps(&told) && turns(&told).len() == 8, "{told}");
        assert!(image() == meanwhile);

        assert_eq!(builder.built(&epoch).ran(), [""; 0]);
        assert!(image() == meanwhile);
        assert_no_scratch(builder);
    });
}

#[test]
fn a_step_that_could_be_known_is_waited_for() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        let dockerfile = |large: &str| format!("FROM busybox\nCOPY file /\n{large}RUN ls -l /file > /size\n");
        sandbox.write("file", &"1".repeat(5 << 20));
        sandbox.write("Dockerfile", &dockerfile(LARGE));
        builder.built(&[]);

        // The same layer comes again, on which there is a record.
        sandbox.write("Dockerfile", &dockerfile(&LARGE.replace("RUN", "RUN :;")));
        let told = rawjson(builder, &[]);
        assert!(!overlaps(&told), "{told}");
        assert_eq!(builder.built(&[]).ran(), [""; 0]);

        // On other files than ever before there is none.
        sandbox.write("Dockerfile", &dockerfile(""));
        sandbox.write("file", &"2".repeat(64 << 20));
        let told = rawjson(builder, &[]);
        let place = |kind: &str, nth: usize| {
            let is_of_kind = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|event| event["event"] == kind);
            let places = told.lines().enumerate().filter(|(_, line)| is_of_kind(line));
            places.map(|(place, _)| place).nth(nth).unwrap()
        };
        assert!(place("started", 2) < place("finished", 1), "{told}");
    });
}

#[test]
fn a_failure_loses_nothing_of_the_step_before() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.write("Dockerfile", &format!("FROM busybox\n{LARGE}RUN ls -l /large; exit 3\n"));
        let failed = builder.build(&[]);
        assert_eq!(failed.code, Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains("did not complete: exit code 3"), "{}", failed.stderr);
        assert!(failed.stderr.contains("67108864"), "{}", failed.stderr);
        assert_no_scratch(builder);
        sandbox.write("Dockerfile", &format!("FROM busybox\n{LARGE}RUN ls -l /large\n"));
        assert_eq!(builder.built(&[]).ran(), ["[3/3] RUN ls -l /large"]);
    });
}

#[test]
fn a_layer_is_in_the_cache_before_the_next_step_ends() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.write("Dockerfile", &format!("FROM busybox\n{LARGE}RUN sleep 1000; cat /large\n"));
        let mut build = builder.build_command(&[]).stderr(Stdio::null()).spawn().unwrap();
        // The layer of the base and this one, and its record.
        let count = || {
            let layers = fs::read_dir(builder.store().join("layers")).map_or(0, Iterator::count);
            let slots = walkdir::WalkDir::new(builder.store().join("cache/slot")).into_iter().flatten();
            (layers, slots.filter(|entry| entry.file_type().is_file()).count())
        };
        let begun = Instant::now();
        while count() != (2, 1) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(count(), (2, 1));
        build.kill().unwrap();
        build.wait().unwrap();
        sandbox.write("Dockerfile", &format!("FROM busybox\n{LARGE}RUN cat /large | wc -c > /size\n"));
        assert_eq!(builder.built(&[]).ran(), ["[3/3] RUN cat /large | wc -c > /size"]);
    });
}

#[test]
fn two_builders_run_such_a_step_once() {
    Builder::each(|builder| {
        let uuid = "cat /proc/sys/kernel/random/uuid > /id";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{LARGE}RUN sleep 1; {uuid}\n"));
        let start = |name: &str| {
            let output = format!("type=oci,dest={name}");
            builder.build_command(&["-o", &output]).stderr(Stdio::piped()).spawn().unwrap()
        };
        let builds = [start("a.tar"), start("b.tar")].map(|build| build.wait_with_output().unwrap());
        let ran = builds.map(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{stderr}");
            Ended { code: Some(0), stdout: Vec::new(), stderr }.ran().len()
        });
        assert_eq!(ran.iter().sum::<usize>(), 2, "{ran:?}");
    });
}
