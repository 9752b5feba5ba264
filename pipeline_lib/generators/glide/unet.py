"""GLIDE's UNets are diffusers' with "simple" cross-attention: keys and values of the text beside those of the image, in
one softmax."""

from diffusers import UNet2DConditionModel

from pipeline_lib.generators.glide.sizes import COLOURS, HEAD, UNetSizes


def build_unet(sizes: UNetSizes, text_width: int) -> UNet2DConditionModel:
    """An untrained UNet, [N, in_channels, S, S] -> [N, 6, S, S]: the predicted noise of each colour, then the predicted
    interpolation coefficient of its variance (original: `create_model`). `TextFeatures.tokens` enter as
    `encoder_hidden_states`, `pooled` as `class_labels`."""
    down = tuple("SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in sizes.attention)
    up = tuple("SimpleCrossAttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in sizes.attention)
    return UNet2DConditionModel(
        sample_size=sizes.resolution,
        in_channels=sizes.in_channels,
        out_channels=2 * COLOURS,
        block_out_channels=sizes.widths,
        layers_per_block=sizes.layers,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up[::-1],
        attention_head_dim=HEAD,
        cross_attention_dim=text_width,
        class_embed_type="identity",  # the projected text is added to the time embedding as it is
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,
        freq_shift=0,
    )
