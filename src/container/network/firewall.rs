//! What the host's packet filter does with a build's private networks, through nf_tables.
//!
//! ```text
//! table inet wytheN-… (owned by the socket that made it, and gone with it)
//!   prerouting    from a lane and not with its range's address: drop
//!                 probe: count
//!   forward       from a lane of any build to a lane of any build: drop
//!   proof         probe: count, drop
//!   postrouting   from the range: masquerade
//! ```
//!
//! A *probe* is a packet to an address that is nobody's. When it is counted in `proof` it has passed all
//! that the host's own rules have against forwarding.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::netlink::{Attributes, CREATE, Message, Socket};
use super::range::Range;

/// TEST-NET-2, of documents alone.
pub const PROBE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

// From `linux/netfilter/nf_tables.h`.
const TABLE_OWNER: u32 = 2;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const PAYLOAD_DESTINATION: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;

/// What all lanes' interfaces on the host are called at the beginning.
pub const LANES: &str = "wythe";

/// A place in a packet's way, where rules stand.
#[derive(Clone, Copy)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    /// `NF_INET_*`.
    hook: u32,
    priority: i32,
}

const PREROUTING: Chain = Chain { name: "prerouting", kind: "filter", hook: 0, priority: -300 };
const FORWARD: Chain = Chain { name: "forward", kind: "filter", hook: 2, priority: 0 };
const PROOF: Chain = Chain { name: "proof", kind: "filter", hook: 4, priority: 0 };
const POSTROUTING: Chain = Chain { name: "postrouting", kind: "nat", hook: 4, priority: 100 };

/// The table of one build, for as long as this lives.
pub struct Table {
    socket: Socket,
    name: String,
}

impl Table {
    /// Makes the table for `range`. `claim` is any descriptor that nobody else has: its number tells the
    /// table from one whose owner is just ending.
    pub fn make(range: Range, has_v6: bool, claim: &OwnedFd) -> Result<Self, Errno> {
        // The kernel knows an owner by this number, and takes away what belongs to it a moment after
        // it was given free; the numbers that it chooses itself are those of processes, small and often the same.
        let number = rustix::fs::fstat(claim)?.st_ino as u32;
        let socket = Socket::open_as(rustix::net::netlink::NETFILTER, number)?;
        let name = format!("{LANES}{}-{number}", range.index);
        let mut requests = vec![
            message(libc::NFT_MSG_NEWTABLE, CREATE)
                .with_text(TABLE_NAME, &name)
                .with(TABLE_FLAGS, &TABLE_OWNER.to_be_bytes()),
        ];
        requests.extend([PREROUTING, FORWARD, PROOF, POSTROUTING].map(|chain| base_chain(&name, chain)));
        requests.extend(rules(&name, range, has_v6));
        socket.batch(framed(libc::NFNL_MSG_BATCH_BEGIN), requests, framed(libc::NFNL_MSG_BATCH_END))?;
        Ok(Self { socket, name })
    }

    /// How many probes have come in, and how many of them went all the way.
    pub fn probes(&self) -> Result<(u64, u64), Errno> {
        Ok((self.counted(PREROUTING)?, self.counted(PROOF)?))
    }

    fn counted(&self, chain: Chain) -> Result<u64, Errno> {
        let all = message(libc::NFT_MSG_GETRULE, 0).with_text(RULE_TABLE, &self.name).with_text(RULE_CHAIN, chain.name);
        let rules = self.socket.dump(all)?;
        let expressions = rules.iter().filter_map(|rule| rule.attributes(4).get(RULE_EXPRESSIONS));
        Ok(expressions.flat_map(Attributes::within).filter_map(|(_, element)| packets(element)).sum())
    }
}

/// What a counter has counted.
fn packets(expression: &[u8]) -> Option<u64> {
    let expression = Attributes::within(expression);
    if expression.get(EXPRESSION_NAME)? != b"counter\0" {
        return None;
    }
    let counter = Attributes::within(expression.get(EXPRESSION_DATA)?);
    Some(u64::from_be_bytes(counter.get(COUNTER_PACKETS)?.try_into().ok()?))
}

/// `struct nfgenmsg`.
fn message(kind: i32, flags: u16) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    Message::new(kind, flags, &[NFPROTO_INET, 0, 0, 0])
}

/// The beginning or end of a batch for nf_tables.
fn framed(kind: i32) -> Message {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    Message::new(kind as u16, 0, &[0, 0, high, low])
}

fn base_chain(table: &str, chain: Chain) -> Message {
    message(libc::NFT_MSG_NEWCHAIN, CREATE)
        .with_text(CHAIN_TABLE, table)
        .with_text(CHAIN_NAME, chain.name)
        .with_text(CHAIN_TYPE, chain.kind)
        .nest(CHAIN_HOOK, |hook| {
            hook.with(HOOK_NUMBER, &chain.hook.to_be_bytes()).with(HOOK_PRIORITY, &chain.priority.to_be_bytes())
        })
}

fn rules(table: &str, range: Range, has_v6: bool) -> Vec<Message> {
    // `wythe12-` and no `wythe123-`.
    let own = format!("{LANES}{}-", range.index);
    let (network, network_v6, probe) = (range.network().octets(), range.network_v6().octets(), PROBE.octets());
    let (v4, v6) = (&network[..3], &network_v6[..8]);
    let (from_own, to_nobody) = (Test::From(&own), Test::Header(Field::DESTINATION, Is::Equal, &probe));
    let from_range = |field, value| Test::Header(field, Is::Equal, value);
    let from_elsewhere = |field, value| Test::Header(field, Is::Different, value);
    let mut rules = vec![
        rule(table, PREROUTING, &[from_own, from_elsewhere(Field::SOURCE, v4)], &[Act::Drop]),
        rule(table, PREROUTING, &[from_own, to_nobody], &[Act::Count]),
        rule(table, FORWARD, &[Test::From(LANES), Test::To(LANES)], &[Act::Drop]),
        rule(table, PROOF, &[from_range(Field::SOURCE, v4), to_nobody], &[Act::Count, Act::Drop]),
        rule(table, POSTROUTING, &[from_range(Field::SOURCE, v4)], &[Act::Masquerade]),
    ];
    if has_v6 {
        rules.push(rule(table, PREROUTING, &[from_own, from_elsewhere(Field::SOURCE_V6, v6)], &[Act::Drop]));
        rules.push(rule(table, POSTROUTING, &[from_range(Field::SOURCE_V6, v6)], &[Act::Masquerade]));
    } else {
        rules.push(rule(table, PREROUTING, &[from_own, Test::Protocol(NFPROTO_IPV6)], &[Act::Drop]));
    }
    rules
}

#[derive(Clone, Copy)]
enum Test<'a> {
    Protocol(u8),
    /// The beginning of the name of the interface that a packet comes from.
    From(&'a str),
    To(&'a str),
    /// The beginning of a field.
    Header(Field, Is, &'a [u8]),
}

#[derive(Clone, Copy)]
enum Is {
    Equal,
    Different,
}

/// Where something stands in the header of a protocol.
#[derive(Clone, Copy)]
struct Field {
    protocol: u8,
    offset: u32,
}

impl Field {
    const SOURCE: Self = Self { protocol: NFPROTO_IPV4, offset: 12 };
    const DESTINATION: Self = Self { protocol: NFPROTO_IPV4, offset: 16 };
    const SOURCE_V6: Self = Self { protocol: NFPROTO_IPV6, offset: 8 };
}

#[derive(Clone, Copy)]
enum Act {
    Count,
    Drop,
    Masquerade,
}

/// Does `acts` with the packets that pass all `tests`.
fn rule(table: &str, chain: Chain, tests: &[Test<'_>], acts: &[Act]) -> Message {
    let message = message(libc::NFT_MSG_NEWRULE, (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16);
    message.with_text(RULE_TABLE, table).with_text(RULE_CHAIN, chain.name).nest(RULE_EXPRESSIONS, |list| {
        let list = tests.iter().fold(list, |list, wanted| test(list, *wanted));
        acts.iter().fold(list, |list, wanted| act(list, *wanted))
    })
}

fn test(list: Message, wanted: Test<'_>) -> Message {
    match wanted {
        Test::Protocol(protocol) => compare(load_meta(list, libc::NFT_META_NFPROTO), Is::Equal, &[protocol]),
        Test::From(name) => compare(load_meta(list, libc::NFT_META_IIFNAME), Is::Equal, name.as_bytes()),
        Test::To(name) => compare(load_meta(list, libc::NFT_META_OIFNAME), Is::Equal, name.as_bytes()),
        Test::Header(field, is, value) => {
            let list = test(list, Test::Protocol(field.protocol));
            compare(load_header(list, field.offset, value.len()), is, value)
        }
    }
}

fn load_meta(list: Message, key: i32) -> Message {
    expression(list, "meta", |data| {
        data.with(META_DESTINATION, &register()).with(META_KEY, &(key as u32).to_be_bytes())
    })
}

fn load_header(list: Message, offset: u32, length: usize) -> Message {
    let base = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
    expression(list, "payload", |data| {
        data.with(PAYLOAD_DESTINATION, &register())
            .with(PAYLOAD_BASE, &base.to_be_bytes())
            .with(PAYLOAD_OFFSET, &offset.to_be_bytes())
            .with(PAYLOAD_LENGTH, &(length as u32).to_be_bytes())
    })
}

fn compare(list: Message, is: Is, value: &[u8]) -> Message {
    let operation = match is {
        Is::Equal => libc::NFT_CMP_EQ,
        Is::Different => libc::NFT_CMP_NEQ,
    } as u32;
    expression(list, "cmp", |data| {
        data.with(COMPARE_SOURCE, &register())
            .with(COMPARE_OPERATION, &operation.to_be_bytes())
            .nest(COMPARE_DATA, |bytes| bytes.with(DATA_VALUE, value))
    })
}

fn act(list: Message, wanted: Act) -> Message {
    match wanted {
        Act::Count => expression(list, "counter", |data| data),
        Act::Masquerade => expression(list, "masq", |data| data),
        Act::Drop => expression(list, "immediate", |data| {
            let verdict = (libc::NFT_REG_VERDICT as u32).to_be_bytes();
            data.with(IMMEDIATE_DESTINATION, &verdict).nest(IMMEDIATE_DATA, |value| {
                value.nest(DATA_VERDICT, |verdict| verdict.with(VERDICT_CODE, &NF_DROP.to_be_bytes()))
            })
        }),
    }
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(ELEMENT, |element| element.with_text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data))
}

fn register() -> [u8; 4] {
    (libc::NFT_REG_1 as u32).to_be_bytes()
}
