//! Device nodes that a step makes.

use super::bench::Bench;

#[test]
fn nodes_of_the_root_are_made() {
    let bench = Bench::new();
    let ran = bench
        .succeed(&bench.script("mknod /null c 1 3; mknod /disk b 259 7; stat -c '%F %t:%T %a %u:%g %n' /null /disk"));
    println!("{}", ran.output);
}
