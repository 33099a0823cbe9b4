"""Keep Telegram chats in a history, whatever library talks to Telegram; for the adapters of these libraries."""
