//! Whatever text a client sends: no panic, and what is accepted was valid.
#![no_main]

use crossfade::protocol::{ClientFrame, Positions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = ClientFrame::parse(text);
    if let Ok(positions) = text.parse::<Positions>() {
        assert_eq!(positions.to_string().parse(), Ok(positions));
    }
});
