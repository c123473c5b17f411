"""The small encoder that the demo pretrains and hands over: 4 blocks of width 96 on patches of 8 pixels."""

encoder = dict(model="adpe_vit_tiny_patch8", embed_dim=96, depth=4, num_heads=3, img_size=64)
