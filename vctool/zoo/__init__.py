"""The models that can be fetched by a short name: what they are, where their weights lie, and how these come here whole."""
