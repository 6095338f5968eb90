"""OpenVLA and OpenVLA-OFT (`model_type: openvla`, `openvla_oft`)."""
