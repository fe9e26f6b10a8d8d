//! Promise: public enums, their variants and public structs follow the rule for `non_exhaustive` in
//! CONTRIBUTING.md.
//!
//! Guarantee: none

use crate::source;

/// Enums whose cases a caller has to decide over, each of them.
const EXHAUSTIVE: [&str; 3] = ["Applied", "Outcome", "Resolution"];

/// Items that are public by their keyword only: no path leads to them.
const SEALED: [&str; 3] = ["Address", "NoFloat", "UseIncrFloatOrHincrFloat"];

/// An enum, a variant with named fields, or a struct with a public field.
#[derive(Debug)]
struct Item {
    owner: String,
    variant: Option<String>,
    non_exhaustive: bool,
}

/// The tokens from an opening bracket to its closing one, without the two.
fn body(tokens: &[String]) -> &[String] {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match &**token {
            "{" | "[" | "(" => depth += 1,
            "}" | "]" | ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &tokens[1..at];
        }
    }
    panic!("no closing bracket after {:?}", &tokens[..1]);
}

/// Calls `item` with the tokens from each name on that stands at the top of `tokens`, and with
/// whether its attributes hold `non_exhaustive`.
fn each_item(mut tokens: &[String], mut item: impl FnMut(&[String], bool)) {
    let mut non_exhaustive = false;
    while let Some(token) = tokens.first() {
        match &**token {
            "#" => {
                let open = tokens.iter().position(|token| token == "[").unwrap();
                let attribute = body(&tokens[open..]);
                non_exhaustive |= attribute == ["non_exhaustive"];
                tokens = &tokens[open + attribute.len() + 2..];
            }
            "{" | "[" | "(" => tokens = &tokens[body(tokens).len() + 2..],
            _ => {
                item(tokens, non_exhaustive);
                non_exhaustive &= token == "pub";
                tokens = &tokens[1..];
            }
        }
    }
}

/// The public items of a file.
fn items(tokens: &[String]) -> Vec<Item> {
    let mut items = Vec::new();
    each_item(tokens, |tokens, non_exhaustive| {
        let [public, kind, owner, rest @ ..] = tokens else { return };
        if public != "pub" || !["enum", "struct"].contains(&&**kind) {
            return;
        }
        let Some(open) = rest.iter().position(|token| ["{", "(", ";"].contains(&&**token)) else {
            return;
        };
        let fields = if rest[open] == "{" { body(&rest[open..]) } else { &[] };
        let item = |variant| Item { owner: owner.clone(), variant, non_exhaustive };
        if kind == "enum" {
            items.push(item(None));
            each_item(fields, |tokens, non_exhaustive| {
                if let [variant, open, ..] = tokens
                    && open == "{"
                {
                    let variant = Some(variant.clone());
                    items.push(Item { owner: owner.clone(), variant, non_exhaustive });
                }
            });
        } else if fields.windows(2).any(|two| two[0] == "pub" && two[1] != "(") {
            items.push(item(None));
        }
    });
    items
}

#[test]
fn public_enums_variants_and_structs_follow_the_rule_for_non_exhaustive() {
    let all: Vec<Item> = source::files("src").values().flat_map(|file| items(file)).collect();
    let all: Vec<Item> = all.into_iter().filter(|it| !SEALED.contains(&&*it.owner)).collect();
    let wrong: Vec<&Item> =
        all.iter().filter(|it| it.non_exhaustive == EXHAUSTIVE.contains(&&*it.owner)).collect();
    assert!(wrong.is_empty(), "against the rule in CONTRIBUTING.md: {wrong:#?}");
    let variants = all.iter().filter(|item| item.variant.is_some()).count();
    assert!(all.len() - variants >= 25 && variants >= 25, "{} and {variants}", all.len());
}
