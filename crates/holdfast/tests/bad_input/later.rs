//! What the contract has and this version does not do: refused by name.

use holdfast_client::v1;
use v1::content_part::Part;

use crate::ground::{Row, rows};
use crate::turns::of_part;

pub(crate) const ROWS: &[Row] = rows! {
    "ForkSession" => Unimplemented, "METHOD_NOT_IMPLEMENTED", "metadata `method`", |ground| async {
        let request = v1::ForkSessionRequest { name: ground.session().await, ..Default::default() };
        ground.client.sessions().fork_session(request).await
    };
    "SuspendSession" => Unimplemented, "METHOD_NOT_IMPLEMENTED", "metadata `method`", |ground| async {
        let request = v1::SuspendSessionRequest { name: ground.session().await };
        ground.client.sessions().suspend_session(request).await
    };
    "on_busy STEER" => Unimplemented, "FIELD_NOT_IMPLEMENTED", "BadRequest `options.on_busy.STEER`", |ground|
        ground.optioned(v1::TurnOptions { on_busy: v1::OnBusy::Steer.into(), ..Default::default() });
    "on_busy INTERRUPT" => Unimplemented, "FIELD_NOT_IMPLEMENTED", "BadRequest `options.on_busy.INTERRUPT`", |ground|
        ground.optioned(v1::TurnOptions { on_busy: v1::OnBusy::Interrupt.into(), ..Default::default() });
    "a picture" => Unimplemented, "FIELD_NOT_IMPLEMENTED", "BadRequest `input[0].message.content[0].image`", |ground|
        ground.given(vec![of_part(Part::Image(v1::ImagePart { media_type: "image/png".to_owned(), data: vec![0; 8] }))]);
    "a file" => Unimplemented, "FIELD_NOT_IMPLEMENTED", "BadRequest `input[0].message.content[0].file`", |ground|
        ground.given(vec![of_part(Part::File(v1::FilePart::default()))]);
};
