"""Islands on ChainMaker chains: the escrow contract over the published gRPC protocol, by signed requests."""
