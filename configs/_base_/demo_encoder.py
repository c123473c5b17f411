"""The small encoder that the demo pretrains and hands over: 4 blocks of width 64 on patches of 8 pixels."""

encoder = dict(model="adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
