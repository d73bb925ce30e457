//! Steps whose programs are for other machines than this one. Needs qemu-user-static, and before
//! Linux 6.7 that it is registered with the kernel.
#![allow(clippy::print_stderr)] // What is left out says so.

use std::path::Path;

use serde_json::Value;
use tar::Archive;

use super::sandbox::Sandbox;

/// An ELF program without sections: one segment that is the whole file, entered behind its headers.
fn program(number: u16, code: &[u32], text: &str) -> Vec<u8> {
    const BASE: u64 = 0x10000;
    const HEADERS: u64 = 64 + 56;
    let body: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).chain(text.bytes()).collect();
    let length = HEADERS + body.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2, number, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    for long in [BASE + HEADERS, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    for half in [0, 0, 64, 56, 1, 0, 0, 0_u16] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, to be read and executed.
    for word in [1, 5_u32] {
        file.extend(word.to_le_bytes());
    }
    for long in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    [file, body].concat()
}

/// A program that says something to standard output and ends: write(1, text, length); exit(0).
fn arm64(text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    // mov x8, 64; mov x0, 1; adr x1, text; mov x2, length; svc 0; mov x8, 93; mov x0, 0; svc 0
    let text_at = 8 - 2;
    let code = [
        0xd280_0808,
        0xd280_0020,
        0x1000_0001 | text_at << 5,
        0xd280_0002 | length << 5,
        0xd400_0001,
        0xd280_0ba8,
        0xd280_0000,
        0xd400_0001,
    ];
    program(183, &code, text)
}

fn riscv64(text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    // li a7, 64; li a0, 1; auipc a1, 0; addi a1, a1, text; li a2, length; ecall; li a7, 93; li a0, 0; ecall
    let text_at = (9 - 2) * 4;
    let code = [
        0x0400_0893,
        0x0010_0513,
        0x597,
        text_at << 20 | 0x58593,
        length << 20 | 0x613,
        0x73,
        0x05d0_0893,
        0x513,
        0x73,
    ];
    program(243, &code, text)
}

fn is_emulated(machine: &str) -> bool {
    let is_there = ["/usr/bin", "/usr/local/bin"].iter().any(|dir| {
        Path::new(&format!("{dir}/qemu-{machine}-static")).exists()
            || Path::new(&format!("{dir}/qemu-{machine}")).exists()
    });
    if !is_there {
        eprintln!("not tested with programs for {machine}: qemu-user-static is not installed");
    }
    is_there
}

#[test]
fn steps_for_other_machines_run() {
    if !is_emulated("aarch64") || !is_emulated("riscv64") {
        return;
    }
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.context.join("arm64"), arm64("said on arm64\n")).unwrap();
    std::fs::write(sandbox.context.join("riscv64"), riscv64("said on riscv64\n")).unwrap();
    sandbox.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 $TARGETARCH /say\nRUN [\"/say\"]\n");
    let ended = sandbox.build("image.tar", &["--platform=linux/arm64,linux/riscv64".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for machine in ["arm64", "riscv64"] {
        assert!(ended.stderr.contains(&format!(" said on {machine}\n")), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!(" [linux/{machine} 2/2] RUN [\"/say\"]\n")), "{}", ended.stderr);
    }
    // An index of both, and each config says what it is for.
    let mut archive = Archive::new(std::fs::File::open(sandbox.path("image.tar")).unwrap());
    let mut machines = Vec::new();
    for entry in archive.entries().unwrap() {
        let Ok(blob) = serde_json::from_reader::<_, Value>(entry.unwrap()) else { continue };
        let manifests = blob["manifests"].as_array().into_iter().flatten();
        machines.extend(manifests.filter_map(|entry| entry["platform"]["architecture"].as_str().map(String::from)));
        machines.extend(blob["architecture"].as_str().map(|name| format!("config for {name}")));
    }
    machines.sort();
    assert_eq!(machines, ["arm64", "config for arm64", "config for riscv64", "riscv64"]);
    // Each has a key of its own, by its platform.
    let ended = sandbox.build("image.tar", &["--platform=linux/riscv64".into()]);
    assert_eq!((ended.code, ended.ran()), (Some(0), vec![]), "{}", ended.stderr);
}

#[test]
fn a_program_that_does_not_run_here_is_named() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.context.join("say"), program(4660, &[0], "")).unwrap();
    sandbox.write("Dockerfile", "FROM busybox\nCOPY --chmod=755 say /\nRUN [\"/say\"]\n");
    let ended = sandbox.build("image.tar", &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = "error: cannot execute `/say`: it is a program for machine 4660, which does not run here\n --> context/Dockerfile:3:1\n";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);

    // Where there could be an emulator, but the step is for this machine.
    const HANDLER: &str = "/proc/sys/fs/binfmt_misc/qemu-loongarch64";
    if Path::new(HANDLER).exists() {
        eprintln!("not tested with programs of another machine than the platform's: {HANDLER} runs them");
        return;
    }
    std::fs::write(sandbox.context.join("say"), program(258, &[0], "")).unwrap();
    let ended = sandbox.build("image.tar", &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for said in [
        "it is a program for loong64, which does not run here",
        "this step is for linux/",
        "`--platform linux/loong64`",
    ] {
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}
