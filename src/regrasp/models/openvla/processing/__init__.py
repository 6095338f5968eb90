"""Images, words and actions of OpenVLA."""
