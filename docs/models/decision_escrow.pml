/*
 * Decision escrow: one settlement of two legs on two islands, two engines that may be alive at once, crash at any
 * step and come back, and a network that loses, repeats and reorders. The steps are named as in the code:
 * settlement/usecases/settle.py (Engine) and settlement/store/decision_log.py (DecisionLog).
 *
 * What the model takes over from the code:
 *   - every write to the log is one atomic step that first compares the engine's epoch with the lease (the fence);
 *   - the log takes one decision (its primary key), and only of a prepared settlement;
 *   - an engine's memory is lost in a crash, and after an error; only the log stays;
 *   - a secret leaves the engine only after it was read from the log, under the decision that publishes it;
 *   - a void of an unknown hold leaves a tombstone.
 * The network: a request once sent may be lost; if not, it may arrive at any later time, any number of times, in any
 * order (a set of messages, which only grows). An answer may be lost, too (Unknown), or come late: a late answer is
 * one that the engine takes at the time it was true, since nothing else happens in an engine that waits. Once a secret
 * is out, anybody outside may use it (ANYBODY).
 * `calm`: from some moment on, nothing crashes and nothing is lost any more ("everyone is back"). Safety needs no calm,
 * which only takes behaviour away: NEVER_CALM leaves it out.
 *
 * What it leaves out: what people read (record_legs, record_waits), more settlements than one (they do not meet),
 * and time: no clock decides anything, so every wait may end at any moment as "no answer" (Unknown).
 *
 * Planted bugs, each by a macro, to show that the properties can fail: NO_FENCE, NO_KEY, NO_TOMBSTONE, COMMIT_EARLY,
 * SECRET_FIRST, PRESUME_COMMIT. NO_FENCE alone breaks nothing but the fence: one decision row a settlement is the
 * second, independent means; NO_FENCE with NO_KEY splits.
 */

#ifndef CRASHES
#define CRASHES 2   /* crashes and errors of both engines together, and returns of a deposed one */
#endif

mtype = { none, commit, abort }
mtype = { received, prepared, committed, aborted, settled, cancelled }
mtype = { absent, held, posted, voided }

/* the log */
byte lease = 0
byte prepared_by = 0
mtype state = received
mtype decision = none
bool leg_ended[2]

/* the islands */
mtype hold[2]

/* the network: requests that have left and are not lost */
bool prepare_sent[2], fulfil_sent[2], cancel_sent[2]

/* which secrets anybody outside has ever seen */
bool commit_secret_out, abort_secret_out

byte crashes = CRASHES
bool calm

#ifdef NO_FENCE
#define FENCE(my) true
#else
#define FENCE(my) (lease == my)
#endif

#define MAY_CRASH (crashes > 0 && !calm)
#define OR_CRASH :: d_step { MAY_CRASH -> crashes-- }; goto start
#define FORGET view = none; is_open = false; is_held_0 = false; is_held_1 = false
#define OR_DEPOSED :: !FENCE(my) -> goto standby

/* DecisionLog.decide: one transaction. A settlement that is decided keeps its decision. */
inline write_decision(what) {
#ifdef NO_KEY
    decision = what; state = (what == commit -> committed : aborted)
#else
    if
    :: decision == none && state == prepared ->
        decision = what; state = (what == commit -> committed : aborted)
    :: else
    fi
#endif
}

inline send(message) {
    if
    :: message = true
    :: !calm                                          /* the request is lost */
    fi
}

/* What an answer can say now of a leg: posts and voids are for ever, so a late answer says the same. */
#ifdef NO_TOMBSTONE
#define ENDED(leg) (hold[leg] == posted || (abort_secret_out && hold[leg] != held))
#else
#define ENDED(leg) (hold[leg] == posted || hold[leg] == voided)
#endif
/* In the calm a call is waited for, if its request was not lost before. */
#define ANSWERED(leg, sent) (!calm || !sent[leg])

proctype Engine() {
    byte my
    mtype view          /* the decision as this engine has read it from the log */
    bool is_open, is_held_0, is_held_1

start:
    skip;
    /* 5. Engine.start: memory is believed never; take_lease */
    d_step { FORGET; lease++; my = lease };
    /* 5. undecided_of_others: what an earlier engine prepared and never decided is presumed aborted */
    if
    :: state == prepared && prepared_by < my ->
        if
#ifdef PRESUME_COMMIT
        :: d_step { FENCE(my) -> write_decision(commit) }
#else
        :: d_step { FENCE(my) -> write_decision(abort) }
#endif
        OR_DEPOSED
        OR_CRASH
        fi
    :: !(state == prepared && prepared_by < my)
    fi;

unfinished:
    /* 4. unfinished: the decision and its one secret, read together, under the decision that publishes it */
    if
    :: d_step { (state == committed || state == aborted) -> view = decision }; goto publish
    :: state == settled || state == cancelled -> goto over
    :: state == received || state == prepared
    OR_CRASH
    fi;

take_wave:
    if
    :: state == received ->
        /* 1. persist: two fresh secrets, stored before anybody hears of the settlement */
        if
        :: d_step { FENCE(my) && state == received -> state = prepared; prepared_by = my; is_open = true }
        :: state != received -> goto take_wave        /* somebody was faster: persist leaves it out */
        OR_DEPOSED
        OR_CRASH
        fi
    :: state != received && is_open                   /* its own, undecided */
    :: state != received && !is_open ->
        /* nothing to do for this engine; renew_lease tells it whether it still is the one */
        if
        :: !FENCE(my) -> goto standby
        :: state == settled || state == cancelled -> goto over
        OR_CRASH
        fi
    fi;

authorise:
    /* 2a. Every payer's institution signs. A refusal aborts; so does a settlement that is given up, here or later */
    if
    :: skip
    :: goto give_up
    OR_CRASH
    fi;

hold_legs:
    /* 2b. prepare: every leg as a hold under both hashes, on both islands at once */
    atomic {
        if :: !is_held_0 -> send(prepare_sent[0]) :: is_held_0 fi;
        if :: !is_held_1 -> send(prepare_sent[1]) :: is_held_1 fi
    };
    if
    :: atomic {
        (is_held_0 || hold[0] != absent || ANSWERED(0, prepare_sent)) &&
            (is_held_1 || hold[1] != absent || ANSWERED(1, prepare_sent)) ->
        if :: hold[0] == held -> is_held_0 = true :: !calm || hold[0] != held fi;
        if :: hold[1] == held -> is_held_1 = true :: !calm || hold[1] != held fi
       }
    :: goto give_up                                   /* an island refuses, or UNDECIDED_MAX, or the operator */
    OR_CRASH
    fi;

#ifdef SECRET_FIRST
    if
    :: d_step { is_held_0 && is_held_1 -> commit_secret_out = true; fulfil_sent[0] = true }
    :: !(is_held_0 && is_held_1)
    fi;
#endif

decide:
    /* 3. decide: COMMIT if every leg is held */
    if
#ifdef COMMIT_EARLY
    :: is_held_0 || is_held_1 ->
#else
    :: is_held_0 && is_held_1 ->
#endif
        if
        :: d_step { FENCE(my) -> write_decision(commit) }
        OR_DEPOSED
        OR_CRASH
        fi
    :: !(is_held_0 && is_held_1) ->
        if
        :: FENCE(my) -> goto hold_legs                /* ask again */
        OR_DEPOSED
        fi
    fi;
    goto read_secret;

give_up:
    /* 3. decide: ABORT */
    if
    :: d_step { FENCE(my) -> write_decision(abort) }
    OR_DEPOSED
    OR_CRASH
    fi;

read_secret:
    /* the secret is read from the log, after the decision is durable */
    if
    :: d_step { decision != none -> FORGET; view = decision }
    OR_CRASH
    fi;

publish:
    /* 4. fulfil or cancel with the decided secret, and only that, on both islands at once */
    if
    :: atomic { view == commit ->
        commit_secret_out = true;
        if :: !leg_ended[0] -> send(fulfil_sent[0]) :: leg_ended[0] fi;
        if :: !leg_ended[1] -> send(fulfil_sent[1]) :: leg_ended[1] fi
       }
    :: atomic { view == abort ->
        abort_secret_out = true;
        if :: !leg_ended[0] -> send(cancel_sent[0]) :: leg_ended[0] fi;
        if :: !leg_ended[1] -> send(cancel_sent[1]) :: leg_ended[1] fi
       }
    OR_CRASH
    fi;
    /* record_ends */
    if
    :: atomic { FENCE(my) &&
            (leg_ended[0] || ENDED(0) || (ANSWERED(0, fulfil_sent) && ANSWERED(0, cancel_sent))) &&
            (leg_ended[1] || ENDED(1) || (ANSWERED(1, fulfil_sent) && ANSWERED(1, cancel_sent))) ->
        if :: ENDED(0) -> leg_ended[0] = true :: !calm || !ENDED(0) fi;
        if :: ENDED(1) -> leg_ended[1] = true :: !calm || !ENDED(1) fi;
        if
        :: leg_ended[0] && leg_ended[1] -> state = (decision == commit -> settled : cancelled); goto over
        :: !(leg_ended[0] && leg_ended[1]) -> goto publish
        fi
       }
    OR_DEPOSED
    OR_CRASH
    fi;

standby:
    skip;
    d_step { FORGET; my = 0 };
end_standby:
    /* deposed: it decides and writes nothing, until it takes the lease again or the other has brought it to an end */
    if
    :: d_step { MAY_CRASH -> crashes-- }; goto start
    :: state == settled || state == cancelled
    fi;
over:
    skip;
    d_step { FORGET; my = 0 }
}

/* Anybody outside who saw a published secret may use it: the payee's bank, say. Progress is not to need it. */
#define ANYBODY(secret_out) (secret_out && !calm)

/* An island: hold, post and void as the ledger keeps them. A step is enabled while it has an effect. */
proctype Island(byte at) {
end_island:
    do
    :: d_step { prepare_sent[at] && hold[at] == absent -> hold[at] = held }
    :: d_step { (fulfil_sent[at] || ANYBODY(commit_secret_out)) && hold[at] == held -> hold[at] = posted }
    :: d_step { (cancel_sent[at] || ANYBODY(abort_secret_out)) && hold[at] == held -> hold[at] = voided }
#ifndef NO_TOMBSTONE
    :: d_step { cancel_sent[at] && hold[at] == absent -> hold[at] = voided }
#endif
    :: d_step { fulfil_sent[at] && hold[at] == voided -> assert(false) }   /* Contradiction: I5 */
    :: d_step { cancel_sent[at] && hold[at] == posted -> assert(false) }   /* Contradiction: I5 */
    od
}

proctype Calm() {
    calm = true
}

init {
    atomic {
        hold[0] = absent; hold[1] = absent;
        run Engine(); run Engine();
        run Island(0); run Island(1);
#ifndef NEVER_CALM
        run Calm()
#endif
    }
}

#define SPLIT ((hold[0] == posted && hold[1] == voided) || (hold[0] == voided && hold[1] == posted))
#define POSTED (hold[0] == posted || hold[1] == posted)
#define VOIDED (hold[0] == voided || hold[1] == voided)
#define SETTLED (state == settled && hold[0] == posted && hold[1] == posted)
#define CANCELLED (state == cancelled && hold[0] == voided && hold[1] == voided)

/* I5: no posted leg beside a voided one, none ended against the decision, and one secret at most is ever seen. */
ltl no_split { [] (!SPLIT && (POSTED -> decision == commit) && (VOIDED -> decision == abort) &&
            !(commit_secret_out && abort_secret_out)) }

/* A secret is seen only after its decision. A COMMIT is never presumed aborted, nor an ABORT undone. */
ltl no_lost_decision { [] (((decision == commit) -> [] (decision == commit && !abort_secret_out)) &&
            ((decision == abort) -> [] (decision == abort && !commit_secret_out)) &&
            ((commit_secret_out || abort_secret_out) -> decision != none)) }

/* Once everyone is back, the settlement ends, whole, and stays so: no late hold stands after the end. */
ltl progress { [] (calm -> <> [] (SETTLED || CANCELLED)) }

/* To be violated: the model is not empty of what it is about. */
ltl never_settles { [] !SETTLED }
ltl never_cancels { [] !CANCELLED }
