"""Networks. The only room that imports flax.linen; knows no mesh, no loss."""
